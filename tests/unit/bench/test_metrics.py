"""The arithmetic of jakiro-bench, without an engine: rates, spreads, intervals, bars."""

from __future__ import annotations

import re

import numpy as np
import pytest

from jakiro_bench import svg
from jakiro_bench.metrics import interval, rate, summary
from jakiro_bench.runners import Answer


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


def test_rates_are_pooled_and_spreads_are_medians() -> None:
    answers = [Answer([1] * 11, "", 9.0, 1.0), Answer([1] * 31, "", 9.0, 9.0), Answer([1], "", 9.0, 0.5)]
    assert rate(answers) == pytest.approx(40 / 10)
    figures = summary([1.0, 9.0, 2.0])
    assert (figures["median"], figures["mad"], figures["min"], figures["max"]) == (2.0, 1.0, 1.0, 9.0)


def test_bars_are_as_high_as_their_values() -> None:
    drawing = svg.bars(["<a>", "b"], {"x": [2.0, 1.0]}, "ms")
    heights = [float(height) for height in re.findall(r'<rect class="c0"[^>]* height="([\d.]+)"', drawing)]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert "<a>" not in drawing
