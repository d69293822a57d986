"""Log-probabilities of drawn tokens and of the best alternatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a drawn token under the target, before any rule; and of the best alternatives."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def token_logprob(logits: np.ndarray, token: int, count: int) -> TokenLogprob:
    """Of one token and of the `count` best ones; logits [vocab]."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    best: list[int] = []
    if count:
        count = min(count, len(scores))
        candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:count].tolist()
    return TokenLogprob(token, float(scores[token]), [(n, float(scores[n])) for n in best])
