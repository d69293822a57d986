"""One answer in the making: its tokens, its text, and when it ends. Knows no graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.sampling.sampler import Sampler, TokenLogprob
from jakiro_runtime.text.stream import TextStream


@dataclass
class GenerationChunk:
    """Something new: the tokens and text of one round. The last event of an answer says why it ended.

    finish_reason: "eos"; "stop" (a stop string, which the text does not hold); "length" (max_new_tokens); "context" (the
        engine's limit); None while the answer goes on
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

    def add(self, event: GenerationChunk) -> None:
        """Append what one event brought."""
        self.tokens += event.tokens
        self.text += event.text
        self.finish_reason = event.finish_reason or ""
        if event.logprobs is not None:
            self.logprobs = (self.logprobs or []) + event.logprobs


class Answer:
    """The state of one answer.

    Args:
        prompt: token ids
        most: tokens of the answer at most
        context: tokens of prompt and answer at most
        eos: tokens that end it

    tokens: prompt and answer so far
    """

    def __init__(
        self,
        prompt: list[int],
        sampler: Sampler,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        eos: frozenset[int],
        most: int,
        context: int,
        levels: int,
    ) -> None:
        self.tokens, self.sampler = prompt[:], sampler
        self.stats = Stats(prompt_tokens=len(prompt), accepted=[0] * levels)
        self.finish_reason: str | None = None
        self._text, self._eos = TextStream(tokenizer, stops), eos
        self._most, self._room = most, context - len(prompt)

    def choose(self, best: int, logits: np.ndarray | None, path: list[int]) -> int:
        """The token behind `path`, tokens of a tree that continue this answer."""
        if logits is None:
            return best
        return self.sampler.choose(best, logits, self.tokens + path, self.stats.new_tokens + len(path))

    def take(self, chosen: Sequence[int]) -> GenerationChunk:
        """Append the tokens of a round, up to the one that ends the answer."""
        taken: list[int] = []
        text, stats = "", self.stats
        for token in chosen:
            taken.append(token)
            stats.new_tokens += 1
            if token in self._eos:
                self.finish_reason = "eos"
            else:
                text += self._text.push(token)
                if self._text.stopped:
                    self.finish_reason = "stop"
                elif stats.new_tokens == self._most:
                    self.finish_reason = "length"
                elif stats.new_tokens == self._room:
                    self.finish_reason = "context"
            if self.finish_reason:
                text += self._text.flush()
                if self._text.stopped:
                    self.finish_reason = "stop"
                break
        self.tokens += taken
        logprobs = None
        if self.sampler.settings.logprobs is not None:
            logprobs, self.sampler.logprobs = self.sampler.logprobs[: len(taken)], []
        return GenerationChunk(taken, text, self.finish_reason, logprobs)
