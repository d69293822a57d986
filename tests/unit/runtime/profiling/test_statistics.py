"""Statistics of repeated measurements."""

from __future__ import annotations

from jakiro_runtime.profiling.statistics import summary


def test_spreads_are_medians() -> None:
    figures = summary([1.0, 9.0, 2.0])
    assert (figures["median"], figures["mad"], figures["min"], figures["max"]) == (2.0, 1.0, 1.0, 9.0)
