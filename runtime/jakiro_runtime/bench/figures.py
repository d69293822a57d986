"""Medians and spreads, and rates pooled over answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from jakiro_runtime.bench.contenders import Answer


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


def rate(answers: Iterable[Answer]) -> float:
    """Tokens per second of decoding, pooled: every answer's tokens after its first, over the seconds they took."""
    tokens = seconds = 0.0
    for answer in answers:
        tokens += max(0, len(answer.tokens) - 1)
        seconds += answer.decode if len(answer.tokens) > 1 else 0.0
    return tokens / seconds if seconds else 0.0
