"""A conversation with an engine, and the loop that answers: draft a tree, verify it in one pass, keep what the target chose."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jakiro_runtime.calls import DraftCall, TargetCall
from jakiro_runtime.errors import UsageError
from jakiro_runtime.sampling import Chooser, Greedy
from jakiro_runtime.stats import Stats
from jakiro_runtime.text import TextStream
from jakiro_runtime.tree import best_nodes, fill_mask, walk

if TYPE_CHECKING:
    from jakiro_runtime.engine import Engine

_EMPTY = np.zeros(0, np.int64)


@dataclass
class Event:
    """Something new: the tokens and text of one round. The last event of an answer says why it ended.

    finish_reason: "eos", "length" (max_new_tokens), "context" (the engine's limit); None while it goes on
    """

    tokens: list[int]
    text: str
    finish_reason: str | None = None


@dataclass
class _Tree:
    """What a round verifies: the nodes under the root; none with speculation off."""

    tokens: np.ndarray = field(default_factory=lambda: _EMPTY)
    parents: np.ndarray = field(default_factory=lambda: _EMPTY)


class Session:
    """One conversation: its caches, and the tokens they stand for. Not for several threads at once; open several sessions.

    Args:
        engine: an opened engine
        speculate: False decodes with the target alone, in the same loop with an empty tree
        chunk: rows of a prompt that are processed in one call
        nodes: verify only the best so many nodes of the tree that the engine drafts
        choose: how a token is chosen; the best one by default
    """

    def __init__(
        self,
        engine: Engine,
        speculate: bool = True,
        chunk: int = 128,
        nodes: int | None = None,
        choose: Chooser | None = None,
    ) -> None:
        self.engine, self.speculate, self.chunk = engine, speculate, chunk
        self.chooser: Chooser = choose or Greedy()
        self.stats = Stats()
        self.tokens: list[int] = []  # what the caches stand for, and the one token that they do not hold yet
        self._nodes = nodes
        self._target = TargetCall(engine.target, engine.manifest, self.chooser.needs_logits)
        self._draft = DraftCall(engine.draft, engine.manifest) if speculate else None
        rows = engine.manifest.draft.nodes + 1
        self._mask, self._depths = np.zeros((rows, rows), bool), np.zeros(rows, np.int64)

    def generate(self, prompt: Sequence[int] | str, max_new_tokens: int = 512) -> Iterator[Event]:
        """Answer a prompt, an event a round. What the prompt shares with the conversation so far is not processed again.

        Leaving the iterator early cancels the answer; the session can go on from there.

        Args:
            prompt: token ids, or text as the model sees it (chat templates: `Engine.chat_prompt`)
            max_new_tokens: the most tokens of the answer

        Raises:
            UsageError: the prompt is empty, holds a number that is no token, or does not fit the context
        """
        ids = self.engine.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        limit = self._check(ids, max_new_tokens)
        clock = time.perf_counter
        started = clock()
        self.stats = stats = Stats(prompt_tokens=len(ids), accepted=[0] * self._levels)
        text, eos = TextStream(self.engine.tokenizer), self.engine.eos_token_ids
        features = self._prefill(ids)
        chosen = [self._choose(0, [], 0)]
        stats.prefill = stats.first_token = clock() - started
        rows, resumed = list(range(len(features))), clock()
        before = (self._draft_seconds, self._target_seconds)

        while True:
            emitted, reason = _cut(chosen, stats.new_tokens, max_new_tokens, limit - len(ids), eos)
            self.tokens += emitted
            stats.new_tokens += len(emitted)
            if reason:
                self._settle()
            piece = text.push([token for token in emitted if token not in eos])
            stats.draft, stats.target = self._draft_seconds - before[0], self._target_seconds - before[1]
            stats.host = clock() - resumed - stats.draft - stats.target
            paused = clock()
            yield Event(emitted, piece + text.flush() if reason else piece, reason)
            if reason:
                return
            resumed += clock() - paused  # the caller's time is not ours

            tree = self._grow(chosen, features[rows] if len(rows) < len(features) else features)
            rows, chosen = self._verify(tree)
            features = self._target.features
            self._target.commit(rows)
            stats.count_round(len(rows) - 1)

    def reset(self) -> None:
        """Forget the conversation."""
        self.tokens = []
        self._target.cache.truncate(0)
        if self._draft:
            self._draft.cache.truncate(0)

    @property
    def _levels(self) -> int:
        return self.engine.manifest.draft.levels if self._draft else 0

    _draft_seconds = 0.0
    _target_seconds = 0.0

    def _check(self, ids: list[int], max_new_tokens: int) -> int:
        model = self.engine.manifest.model
        if not ids:
            raise UsageError("The prompt is empty; give at least one token.")
        if min(ids) < 0 or max(ids) >= model.vocab_size:
            raise UsageError(f"The prompt holds a token outside 0..{model.vocab_size - 1}, the engine's vocabulary.")
        if len(ids) >= model.max_context:
            raise UsageError(
                f"The prompt has {len(ids)} tokens, but this engine's context is {model.max_context}, answer included."
            )
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; at least 1 is expected.")
        return model.max_context

    def _prefill(self, ids: list[int]) -> np.ndarray:
        """Process the prompt in chunks; returns the features of the rows that were processed, [rows, hidden]."""
        start = self._reuse(ids)
        self.stats.reused_tokens = start
        self._target.cache.truncate(start)
        if self._draft:
            self._draft.cache.truncate(start)
        self.tokens = ids[:]
        features = []
        for first in range(start, len(ids), self.chunk):
            part = np.array(ids[first : first + self.chunk], np.int64)
            count = len(part)
            self._run_target(part, np.arange(count), np.tri(count, dtype=bool), last_only=True)
            features.append(self._target.features[:count].copy())
            self._target.commit(range(count))
        return np.concatenate(features)

    def _reuse(self, ids: list[int]) -> int:
        """How many tokens of the prompt the caches hold already; the last one is always processed, for its logits."""
        common = 0
        for ours, theirs in zip(self.tokens, ids, strict=False):
            if ours != theirs:
                break
            common += 1
        # a draft row needs the token after its own: the last common token's row is made again
        held = min(self._target.cache.length, self._draft.cache.length if self._draft else common)
        return max(0, min(common - 1, held, len(ids) - 1))

    def _grow(self, chosen: list[int], features: np.ndarray) -> _Tree:
        """Draft behind the tokens that were just accepted, given the features of the rows before them."""
        if self._draft is None:
            return _Tree()
        started = time.perf_counter()
        first, rows = self._draft.cache.length, len(features)
        after = self.tokens[first + 1 : first + 1 + rows]  # the token behind each feature
        padded = self._levels + 1
        for start in range(0, rows, self.chunk):
            stop = min(rows, start + self.chunk)
            tokens, parents, scores = self._draft.run(
                after[start:stop], features[start:stop], padded if rows <= padded else self.chunk
            )
        self._draft_seconds += time.perf_counter() - started
        if self._nodes is None or self._nodes >= len(tokens):
            return _Tree(tokens, parents)
        kept = best_nodes(scores, parents, self._nodes)
        row = np.zeros(len(tokens) + 1, np.int64)
        row[kept + 1] = np.arange(1, len(kept) + 1)
        return _Tree(tokens[kept], row[parents[kept]])

    def _verify(self, tree: _Tree) -> tuple[list[int], list[int]]:
        """One target pass over root and tree; the accepted rows, and the target's choice behind each."""
        rows = len(tree.tokens) + 1
        mask, depths = self._mask[:rows, :rows], self._depths[:rows]
        fill_mask(tree.parents, mask, depths)
        tokens = np.empty(rows, np.int64)
        tokens[0], tokens[1:] = self.tokens[-1], tree.tokens
        self._run_target(tokens, depths, mask, last_only=False)
        return walk(tree.tokens, tree.parents, lambda row, path: self._choose(row, path, self.stats.new_tokens))

    def _run_target(self, tokens: np.ndarray, depths: np.ndarray, mask: np.ndarray, last_only: bool) -> None:
        started = time.perf_counter()
        self._target.run(tokens, depths, mask, last_only)
        self._target_seconds += time.perf_counter() - started

    def _choose(self, row: int, path: list[int], generated: int) -> int:
        best = int(self._target.next_tokens[row])
        if not self.chooser.needs_logits:
            return self.chooser.choose(best, None, (), generated + len(path))
        return self.chooser.choose(best, self._target.logits[row], self.tokens + path, generated + len(path))

    def _settle(self) -> None:
        """An answer ended: forget what the caches hold beyond its tokens."""
        self._target.cache.truncate(len(self.tokens) - 1)
        if self._draft:
            self._draft.cache.truncate(len(self.tokens) - 1)


def _cut(chosen: list[int], have: int, most: int, room: int, eos: frozenset[int]) -> tuple[list[int], str | None]:
    """The tokens of a round that belong to the answer, and why it ends with them if it does."""
    for number, token in enumerate(chosen, 1):
        if token in eos:
            return chosen[:number], "eos"
        if have + number == most:
            return chosen[:number], "length"
        if have + number == room:
            return chosen[:number], "context"
    return chosen, None
