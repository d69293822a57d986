"""Robust statistics of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any


def summary(values: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """The median of some repeats, their median absolute deviation (mad), and their range."""
    middle = median(values)
    return {
        "median": round(middle, digits),
        "mad": round(median(abs(value - middle) for value in values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "repeats": len(values),
    }
