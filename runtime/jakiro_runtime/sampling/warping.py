"""Warping: temperature, top-k, top-p and min-p in transformers' order and with its meaning, in float64."""

from __future__ import annotations

import numpy as np

from jakiro_runtime.sampling.parameters import Sampling


def warp(scores: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Temperature, top-k, top-p, min-p: the tokens that may be drawn, ascending, and their weights (not normalised).

    Args:
        scores: [vocab] float64, the largest of them finite
    """
    with np.errstate(over="ignore"):  # what overflows has no chance
        scaled = scores / s.temperature
        top = scores.max()
        if not np.isfinite(top / s.temperature):  # a temperature so low that only the best tokens are left
            scaled = (scores - top) / s.temperature
    kept = np.flatnonzero(scaled > -np.inf)
    if 0 < s.top_k < len(kept):
        values = scaled[kept]
        kept = kept[values >= np.partition(values, -s.top_k)[-s.top_k]]  # ties with the k-th stay, as in transformers
    weights = np.exp(scaled[kept] - scaled[kept].max())
    if s.top_p < 1:
        inside = _nucleus(weights, s.top_p)
        kept, weights = kept[inside], weights[inside]
    if s.min_p > 0:
        inside = weights >= s.min_p * weights.max()
        kept, weights = kept[inside], weights[inside]
    return kept, weights


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Which weights are in the fewest that hold `top_p` of the sum; of equals, the higher token first. Ascending indices."""
    limit = top_p * weights.sum()
    head = 512
    while True:  # the nucleus is small as a rule: sort no more than it takes
        if head < len(weights):
            lowest = np.partition(weights, -head)[-head]
            index = np.flatnonzero(weights >= lowest)
        else:
            index = np.arange(len(weights))
        order = index[np.argsort(weights[index], kind="stable")[::-1]]
        before = np.cumsum(weights[order]) - weights[order]
        if before[-1] >= limit or len(index) == len(weights):
            inside = order[before < limit]
            return np.sort(inside if len(inside) else order[:1])
        head *= 8


def invert(weights: np.ndarray, u: float) -> int:
    """The first index at which the cumulative weight exceeds u times the whole, u in [0, 1)."""
    cumulative = np.cumsum(weights)
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(weights) - 1)
