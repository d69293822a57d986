"""How a token is chosen from the target's output. Speculation takes no part in it.

Every position has one pseudo-random number, a function of the seed and the position alone (Philox 4x32-10, Salmon et al. 2011).
A token is the inverse of the warped cumulative distribution at that number, so the same seed gives the same tokens with
speculation on or off, on any tree. Rules are applied in transformers' order and with its meaning, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jakiro_runtime.errors import UsageError

LogitsProcessor = Callable[[Sequence[int], np.ndarray], np.ndarray]
"""A rule of the user's: (every token so far, scores [vocab] float64) -> scores. Must depend on nothing else."""


@dataclass(frozen=True)
class Sampling:
    """What to choose a token by. The defaults are greedy.

    temperature: 0 takes the best token; otherwise scores are divided by it and a token is drawn
    top_k: draw among the k best (0: all)
    top_p: draw among the fewest tokens that hold this much probability
    min_p: draw among tokens at least this probable, relative to the best one
    repetition_penalty: scores of tokens that occurred are divided (above 0) or multiplied (below) by it
    logit_bias: added to the scores of some tokens
    min_new_tokens: no end of sequence before so many tokens of the answer
    logprobs: report the log-probability of each token and of the best so many; None reports none
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


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a chosen token under the target, before any rule; and of the best alternatives."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class Constraint:
    """A rule that allows some tokens only and is told of every token that was chosen; see `jakiro_runtime.sampling.grammar`."""

    def allowed(self) -> np.ndarray | None:
        """Which tokens may come next, bool [vocab]; None where all may."""
        raise NotImplementedError

    def advance(self, token: int) -> None:
        """A token was chosen."""
        raise NotImplementedError

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, one after the other, the rule would allow now."""
        raise NotImplementedError


class Sampler:
    """Chooses the tokens of one answer, in order.

    Args:
        settings: what to choose by
        eos: the tokens that end an answer
        constraint: which tokens may come next, if not all
    """

    def __init__(self, settings: Sampling, eos: frozenset[int], vocab: int, constraint: Constraint | None = None) -> None:
        self.settings, self.constraint = settings, constraint
        self.logprobs: list[TokenLogprob] = []
        self._eos = np.array(sorted(eos), np.int64)
        self._biased = np.array(list(settings.logit_bias), np.int64)
        self._biases = np.array(list(settings.logit_bias.values()), np.float64)
        if len(self._biased) and not (self._biased.min() >= 0 and self._biased.max() < vocab):
            raise UsageError(f"logit_bias names a token outside 0..{vocab - 1}, the engine's vocabulary.")
        s = settings
        ruled = s.logit_bias or s.repetition_penalty != 1 or s.min_new_tokens or s.processors or constraint
        self.needs_logits = bool(s.temperature or ruled or s.logprobs is not None)
        self._only_best = not (s.temperature or ruled)

    def choose(self, best: int, logits: np.ndarray | None, prefix: Sequence[int], generated: int) -> int:
        """The next token. Called once for each token of an answer, in order.

        Args:
            best: the arg max of the logits
            logits: [vocab], or None where `needs_logits` is off
            prefix: every token before it: prompt, answer so far, and the path in the tree
            generated: how many of them belong to the answer
        """
        if logits is None:
            return best
        token = best if self._only_best else self._draw(logits, prefix, generated)
        if self.settings.logprobs is not None:
            self.logprobs.append(_logprob(logits, token, self.settings.logprobs))
        if self.constraint is not None:
            self.constraint.advance(token)
        return token

    def scores(self, logits: np.ndarray, prefix: Sequence[int], generated: int) -> np.ndarray:
        """Scores [vocab], float64, after every rule that comes before temperature."""
        s = self.settings
        scores = logits.astype(np.float64)
        if len(self._biased):
            scores[self._biased] += self._biases
        if s.repetition_penalty != 1:
            seen = np.unique(np.asarray(prefix, np.int64))
            had = scores[seen]
            scores[seen] = np.where(had < 0, had * s.repetition_penalty, had / s.repetition_penalty)
        if generated < s.min_new_tokens:
            scores[self._eos] = -np.inf
        for processor in s.processors:
            scores = np.asarray(processor(prefix, scores), np.float64)
        allowed = self.constraint.allowed() if self.constraint is not None else None
        if allowed is not None:
            scores[~allowed] = -np.inf
        return scores

    def _draw(self, logits: np.ndarray, prefix: Sequence[int], generated: int) -> int:
        scores = self.scores(logits, prefix, generated)
        if not self.settings.temperature:
            return int(scores.argmax())
        tokens, weights = warp(scores, self.settings)
        return int(tokens[invert(weights, uniform(self.settings.seed, len(prefix)))])


def warp(scores: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Temperature, top-k, top-p, min-p: the tokens that may be drawn, ascending, and their weights (not normalised).

    Args:
        scores: [vocab] float64
    """
    scaled = scores / s.temperature
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
            least = np.partition(weights, -head)[-head]
            index = np.flatnonzero(weights >= least)
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


def uniform(seed: int, position: int) -> float:
    """The pseudo-random number of a position, in [0, 1) with 53 bits: Philox 4x32-10, key seed, counter position."""
    high, low = philox(seed & 0xFFFFFFFF, seed >> 32, (position & 0xFFFFFFFF, position >> 32, 0, 0))[:2]
    return ((high >> 5) * 67108864 + (low >> 6)) / 9007199254740992


def philox(key0: int, key1: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox 4x32: four 32-bit numbers from a 64-bit key and a 128-bit counter (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ key0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ key1, p0 & 0xFFFFFFFF
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _logprob(logits: np.ndarray, token: int, count: int) -> TokenLogprob:
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    best: list[int] = []
    if count:
        count = min(count, len(scores))
        candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:count].tolist()
    return TokenLogprob(token, float(scores[token]), [(n, float(scores[n])) for n in best])
