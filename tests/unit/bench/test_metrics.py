"""Pooled rates and intervals, without an engine."""

from __future__ import annotations

import numpy as np
import pytest

from jakiro_bench.metrics import interval, rate
from jakiro_bench.runners import TimedAnswer


def test_an_interval_of_a_ratio_is_as_wide_as_its_parts_are_unlike() -> None:
    rng = np.random.default_rng(3)
    below = rng.integers(20, 60, 400)
    means = rng.normal(2.5, 0.4, 400)
    parts = [(float(mean * count), float(count)) for mean, count in zip(means, below, strict=True)]
    low, high = interval(parts) or [0.0, 0.0]
    exact = 1.96 * 0.4 * np.sqrt((below**2).sum()) / below.sum()  # the ratio's standard error, its weights given
    middle = sum(a for a, _ in parts) / below.sum()
    assert low < middle < high
    assert (high - low) / 2 == pytest.approx(exact, rel=0.15)
    assert interval(parts) == [low, high]
    assert interval([(2.0 * n, float(n)) for n in range(1, 9)]) == [2.0, 2.0]
    assert interval(parts[:7]) is None


def test_rates_are_pooled() -> None:
    answers = [TimedAnswer([1] * 11, "", 9.0, 1.0), TimedAnswer([1] * 31, "", 9.0, 9.0), TimedAnswer([1], "", 9.0, 0.5)]
    assert rate(answers) == pytest.approx(40 / 10)
