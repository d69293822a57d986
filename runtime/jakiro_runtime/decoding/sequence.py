"""One sequence that is being decoded: its tokens, its text, and when it ends. Knows no graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jakiro_runtime.bundle import Bundle
from jakiro_runtime.decoding.stats import RoundCounts, Stats
from jakiro_runtime.decoding.tree import DraftTree
from jakiro_runtime.errors import ContextError, UsageError, UserError
from jakiro_runtime.sampling import NO_TOKEN, Constraint, Sampler, Sampling, TokenLogprob
from jakiro_runtime.sampling.grammar import Grammar
from jakiro_runtime.text.stream import TextStream


@dataclass
class GenerationChunk:
    """Something new: the tokens and text of one round. The last chunk of an answer says why it ended.

    finish_reason: "eos"; "stop" (a stop string, which the text does not hold); "length" (max_new_tokens); "context" (the
        engine's limit); "constraint" (the rules allow no token: a grammar, min_new_tokens and logit_bias exclude each other);
        None while the answer goes on
    logprobs: of each token, where they were asked for
    """

    tokens: list[int]
    text: str
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] | None = None


@dataclass
class GenerationResult:
    """A whole answer; fields as in `GenerationChunk`."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = ""
    logprobs: list[TokenLogprob] | None = None
    stats: Stats = field(default_factory=Stats)

    def add(self, chunk: GenerationChunk) -> None:
        """Append what one chunk brought."""
        self.tokens += chunk.tokens
        self.text += chunk.text
        self.finish_reason = chunk.finish_reason or ""
        if chunk.logprobs is not None:
            self.logprobs = (self.logprobs or []) + chunk.logprobs


class Gain(NamedTuple):
    """Tokens that a sequence gained, and the round that brought them; counts and tree are None for the prompt's pass.

    counts: what to count of the round
    tree: what was verified
    rows: which of its rows were accepted, the root's first
    """

    tokens: list[int]
    counts: RoundCounts | None = None
    tree: DraftTree | None = None
    rows: Sequence[int] = ()


class TokenSequence:
    """The state of one answer.

    Args:
        prompt: token ids
        sampling: how tokens are drawn; greedy by default
        stop: the answer ends where one of these strings appears
        grammar: what the answer must look like
        shown: special tokens, by their strings, that the text shows
        speculate: False verifies no tree for this answer, whatever its batch does
        max_new_tokens: the most tokens of the answer

    tokens: prompt and answer so far

    Raises:
        UsageError: the prompt is empty, holds a number that is no token, or does not fit the context
    """

    def __init__(
        self,
        bundle: Bundle,
        prompt: Sequence[int] | str,
        max_new_tokens: int = 512,
        sampling: Sampling | None = None,
        stop: Sequence[str] | str = (),
        grammar: Grammar | None = None,
        shown: Collection[str] = (),
        speculate: bool = True,
    ) -> None:
        self.speculate = speculate
        self.tokens = _checked_prompt(bundle, prompt)
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; at least 1 is expected.")
        self.stats = Stats(prompt_tokens=len(self.tokens))
        self.finish_reason: str | None = None
        self._failure: UserError | None = None
        self.constraint: Constraint | None = grammar.start() if grammar is not None else None
        model = bundle.manifest.model
        self._sampler = Sampler(sampling or Sampling(), bundle.eos_token_ids, model.vocab_size, self.constraint)
        self._text = TextStream(bundle.tokenizer, [stop] if isinstance(stop, str) else list(stop), shown)
        self._eos, self._limit, self._room = bundle.eos_token_ids, max_new_tokens, model.max_context - len(self.tokens)

    @property
    def longest(self) -> int:
        """The most tokens it may come to have, the prompt's included."""
        return len(self.tokens) + min(self._limit, self._room)

    @property
    def needs_logits(self) -> bool:
        """Whether the best token alone is not enough to draw the next one."""
        return self._sampler.needs_logits

    def next_token(self, best: int, logits: np.ndarray, path: list[int]) -> int:
        """The token after `path`, tokens of a tree that continue this sequence; logits [vocab].

        What the rules raise, `take` raises: the other sequences of the batch are in the middle of a round.
        """
        try:
            return self._sampler.choose(best, logits, self.tokens + path, self.stats.new_tokens + len(path))
        except UserError as error:
            self._failure = error
            return NO_TOKEN

    def take(self, gain: Gain) -> GenerationChunk:
        """Append the tokens of a round, up to the one that ends the answer. Raises what the rules for its tokens raised."""
        if self._failure is not None:
            self.finish_reason = "error"
            raise self._failure
        taken: list[int] = []
        text, stats = "", self.stats
        for token in gain.tokens:
            if token == NO_TOKEN:
                self.finish_reason = "constraint"
                text += self._text.flush()
                break
            taken.append(token)
            stats.new_tokens += 1
            if token in self._eos:
                self.finish_reason = "eos"
            else:
                text += self._text.push(token)
                if self._text.stopped:
                    self.finish_reason = "stop"
                elif stats.new_tokens == self._limit:
                    self.finish_reason = "length"
                elif stats.new_tokens == self._room:
                    self.finish_reason = "context"
            if self.finish_reason:
                text += self._text.flush()
                if self._text.stopped:
                    self.finish_reason = "stop"
                break
        self.tokens += taken
        if gain.counts is not None:
            stats.count_round(min(len(gain.tokens) - 1, len(taken)), gain.counts)
        return GenerationChunk(taken, text, self.finish_reason, self._sampler.take_logprobs(len(taken)))


def _checked_prompt(bundle: Bundle, prompt: Sequence[int] | str) -> list[int]:
    ids = bundle.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
    model = bundle.manifest.model
    if not ids:
        raise UsageError("The prompt is empty; give at least one token.")
    if min(ids) < 0 or max(ids) >= model.vocab_size:
        raise UsageError(f"The prompt holds a token outside 0..{model.vocab_size - 1}, the engine's vocabulary.")
    if len(ids) >= model.max_context:
        raise ContextError(
            f"The prompt has {len(ids)} tokens, but this engine's context is {model.max_context}, answer included."
        )
    return ids
