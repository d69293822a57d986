"""Plots."""

from __future__ import annotations

import re

import pytest

from jakiro_bench import svg


def test_bars_are_as_high_as_their_values() -> None:
    drawing = svg.bars(["<a>", "b"], {"x": [2.0, 1.0]}, "ms")
    heights = [float(height) for height in re.findall(r'<rect class="c0"[^>]* height="([\d.]+)"', drawing)]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2)
    assert "<a>" not in drawing
