"""Medians and spreads, and rates pooled over answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

from jakiro_bench.runners import Answer


def summary(values: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """The median of some repeats, their median absolute deviation, and their range."""
    middle = median(values)
    return {
        "median": round(middle, digits),
        "mad": round(median(abs(value - middle) for value in values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "repeats": len(values),
    }


def interval(parts: Sequence[tuple[float, float]], draws: int = 2000) -> list[float] | None:
    """Between what a ratio of sums lies in 95 % of cases if the parts are drawn anew from themselves; None for fewer than 8.

    The percentile bootstrap (Efron, 1979) over `parts`, each (what it adds above, and below). The same parts give the same.
    """
    if len(parts) < 8:
        return None
    weights = np.random.default_rng(0).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), draws)
    above, below = (weights @ np.array(parts, np.float64)).T
    return [round(float(value), 4) for value in np.percentile(above / below.clip(1e-9), (2.5, 97.5))]


def rate(answers: Iterable[Answer]) -> float:
    """Tokens per second of decoding, pooled: every answer's tokens after its first, over the seconds they took."""
    tokens = seconds = 0.0
    for answer in answers:
        tokens += max(0, len(answer.tokens) - 1)
        seconds += answer.decode if len(answer.tokens) > 1 else 0.0
    return tokens / seconds if seconds else 0.0
