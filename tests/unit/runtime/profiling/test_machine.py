"""How busy the machine is."""

from __future__ import annotations

import pytest

from jakiro_runtime.profiling import machine


def test_the_share_of_other_programs_leaves_ours_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([(100.0, 50.0, 5.0), (120.0, 66.0, 11.0)])  # of 20 seconds 16 were busy, 6 of them ours
    monkeypatch.setattr(machine, "_processor_seconds", lambda: next(seconds))
    assert machine.OtherLoad().share() == 0.5
