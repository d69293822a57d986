"""Sampling parameters: what a token is drawn by."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jakiro_runtime.errors import UsageError

LogitsProcessor = Callable[[Sequence[int], np.ndarray], np.ndarray]
"""A rule of the user's: (every token so far, scores [vocab] float64) -> scores. Must depend on nothing else."""


@dataclass(frozen=True)
class Sampling:
    """What to draw a token by. The defaults are greedy.

    temperature: 0 takes the best token; otherwise scores are divided by it and a token is drawn
    top_k: draw among the k best (0: all)
    top_p: draw among the fewest tokens that hold this much probability
    min_p: draw among tokens at least this probable, relative to the best one
    repetition_penalty: scores of tokens that occurred are divided (above 0) or multiplied (below) by it
    logit_bias: added to the scores of some tokens; -1e9 forbids one
    min_new_tokens: no end of sequence before the answer has this many tokens
    logprobs: report the log-probability of each token and of this many best ones; None reports none
    seed: of the pseudo-random numbers
    processors: rules of your own, applied before temperature

    Raises:
        UsageError: a value out of its range
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_new_tokens: int = 0
    logprobs: int | None = None
    seed: int = 0
    processors: Sequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        for name, kind, fine, wanted in _RANGES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not fine(value):
                raise UsageError(f"{name} is {value}; expected {wanted}.")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, numbers.Integral):
                raise UsageError(f"logit_bias names the token {token!r}; expected a whole number.")
            if not isinstance(bias, numbers.Real) or not abs(bias) <= _LARGEST_BIAS:  # not a number compares with nothing
                raise UsageError(
                    f"logit_bias of token {token} is {bias}; expected a number between -1e9 (forbids it) and 1e9 (forces it)."
                )


_LARGEST_BIAS = 1e9
_INTEGER, _REAL = numbers.Integral, numbers.Real
_RANGES: tuple[tuple[str, Any, Callable[[Any], bool], str], ...] = (
    ("temperature", _REAL, lambda value: 0 <= value < float("inf"), "a number of 0 or more"),
    ("top_k", _INTEGER, lambda value: value >= 0, "0 (all) or more"),
    ("top_p", _REAL, lambda value: 0 < value <= 1, "above 0 and at most 1"),
    ("min_p", _REAL, lambda value: 0 <= value <= 1, "between 0 and 1"),
    ("repetition_penalty", _REAL, lambda value: 1e-3 <= value <= 1e3, "between 0.001 and 1000"),
    ("min_new_tokens", _INTEGER, lambda value: value >= 0, "0 or more"),
    ("logprobs", (_INTEGER, type(None)), lambda value: value is None or value >= 0, "0 or more"),
    ("seed", _INTEGER, lambda value: 0 <= value < 1 << 64, "0 or more, below 2^64"),
)
