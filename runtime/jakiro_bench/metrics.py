"""Pooled rates and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from jakiro_bench.runners import TimedAnswer


def interval(parts: Sequence[tuple[float, float]], draws: int = 2000) -> list[float] | None:
    """The 95 % interval of a ratio of sums, by resampling its parts; None for fewer than 8 parts.

    The percentile bootstrap (Efron, 1979). Deterministic.

    Args:
        parts: (numerator, denominator) of each
    """
    if len(parts) < 8:
        return None
    weights = np.random.default_rng(0).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), draws)
    numerators, denominators = (weights @ np.array(parts, np.float64)).T
    return [round(float(value), 4) for value in np.percentile(numerators / denominators.clip(1e-9), (2.5, 97.5))]


def rate(answers: Iterable[TimedAnswer]) -> float:
    """Tokens per second of decoding, pooled: every answer's tokens after its first, over the seconds they took."""
    tokens = seconds = 0.0
    for answer in answers:
        tokens += max(0, len(answer.tokens) - 1)
        seconds += answer.decode if len(answer.tokens) > 1 else 0.0
    return tokens / seconds if seconds else 0.0
