"""Sampler: from the target's logits to a token. Speculation takes no part in it.

Every position has one pseudo-random number, a function of the seed and the position alone. A token is the inverse of the warped
cumulative distribution at that number, so the same seed gives the same tokens with speculation on or off, on any tree. Rules are
applied in transformers' order and with its meaning, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.sampling.constraint import Constraint
from jakiro_runtime.sampling.logprobs import TokenLogprob, token_logprob
from jakiro_runtime.sampling.parameters import Sampling
from jakiro_runtime.sampling.philox import uniform
from jakiro_runtime.sampling.warping import invert, warp

NO_TOKEN = -1
"""In place of a token where the rules leave none."""


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

        Returns:
            NO_TOKEN where the rules forbid all of them, and the answer cannot go on

        Raises:
            EngineError: the logits, or what a processor made of them, are not numbers
            UsageError: a processor gives another shape
        """
        if logits is None:
            return best
        token = best if self._only_best else self._draw(logits, prefix, generated)
        if token == NO_TOKEN:
            return token
        if self.settings.logprobs is not None:
            self.logprobs.append(token_logprob(logits, token, self.settings.logprobs))
        if self.constraint is not None:
            self.constraint.advance(token)
        return token

    def take_logprobs(self, count: int) -> list[TokenLogprob] | None:
        """Those of the last `count` tokens that were drawn, forgetting what was drawn after them; None where not asked for."""
        if self.settings.logprobs is None:
            return None
        taken, self.logprobs = self.logprobs[:count], []
        return taken

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
            if scores.shape != logits.shape:
                raise UsageError(f"A processor gave scores of shape {scores.shape}; expected {logits.shape}.")
        allowed = self.constraint.allowed() if self.constraint is not None else None
        if allowed is not None:
            scores[~allowed] = -np.inf
        return scores

    def _draw(self, logits: np.ndarray, prefix: Sequence[int], generated: int) -> int:
        scores = self.scores(logits, prefix, generated)
        top = scores.max()
        if top == -np.inf:
            return NO_TOKEN
        if not np.isfinite(top):
            raise EngineError("The target's scores are not numbers (NaN or infinite); export the engine with --precision fp32.")
        if not self.settings.temperature:
            return int(scores.argmax())
        tokens, weights = warp(scores, self.settings)
        return int(tokens[invert(weights, uniform(self.settings.seed, len(prefix)))])
