"""Measured costs: ratios that hold while the machine's speed changes, and measuring again where it did."""

from __future__ import annotations

import numpy as np
import pytest

from jakiro_export.tree_search import costs
from jakiro_export.tree_search.costs import Decoding, typical_sweep
from jakiro_export.tree_search.shapes import ROWS
from jakiro_runtime import Engine


def test_how_passes_compare_does_not_depend_on_when_they_were_timed() -> None:
    """A machine at half speed in four sweeps of nine, and a hiccup of one pass in one of the others."""
    true = np.array([10.0, 11.0, 14.0, 30.0])
    speed = np.array([1, 1, 2, 2, 1, 2, 1, 2, 1])[:, None]
    times = true * speed * np.random.default_rng(0).normal(1, 0.01, (9, 4))
    times[4, 1] *= 3
    found = typical_sweep(times)
    assert found / found[0] == pytest.approx(true / true[0], rel=0.03)
    naive = np.median(times, 0)  # a control: this pass would seem to cost twice as much
    assert naive[1] / naive[0] > 1.8


def test_warming_up_ends_when_passes_take_the_same_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 6.0, 5.0, 4.9, 1.0])
    monkeypatch.setattr(costs, "_median_ms", lambda reference: next(times))
    costs.warm_up(engine, 60.0)
    assert next(times) == 1.0
    steady = iter([1.0, 2.0, 4.0])
    monkeypatch.setattr(costs, "_median_ms", lambda reference: next(steady))
    costs.warm_up(engine, 0.0)  # no time for more than one look
    assert next(steady) == 2.0


def test_target_costs_never_fall_with_the_rows(engine: Engine) -> None:
    plan = costs.target_costs(engine, 9)
    assert plan.rows == list(ROWS)
    assert len(plan.target_ms) == 2
    for times in plan.target_ms.values():
        assert times == sorted(times)
        assert times[0] > 0


def test_rates_that_differ_do_not_agree() -> None:
    expected = Decoding(1.8, 150.0, 100.0)
    assert expected.agrees(Decoding(1.8, 155.0, 95.0))
    assert not expected.agrees(Decoding(1.8, 223.5, 208.4))  # twice the speed, and of the speed-up nothing was left
    assert not expected.agrees(Decoding(1.8, 300.0, 200.0))
    assert not expected.agrees(Decoding(1.8, 120.0, 100.0))
