"""Sampling parameters: what a token is drawn by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
    logit_bias: added to the scores of some tokens
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
        for name, fine, wanted in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("min_new_tokens", self.min_new_tokens >= 0, "0 or more"),
            ("logprobs", self.logprobs is None or self.logprobs >= 0, "0 or more"),
            ("seed", 0 <= self.seed < 1 << 64, "0 or more, below 2^64"),
        ):
            if not fine:
                raise UsageError(f"{name} is {getattr(self, name)}; expected {wanted}.")
