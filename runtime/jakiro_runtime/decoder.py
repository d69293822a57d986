"""The loop's two steps for a batch of answers in lockstep: process prompts; draft trees, verify them in one pass, walk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jakiro_runtime.answer import Answer
from jakiro_runtime.backend import Array
from jakiro_runtime.calls import DraftCall, TargetCall
from jakiro_runtime.sampling import Constraint
from jakiro_runtime.tree import best_nodes, closed, fill_mask, walk

if TYPE_CHECKING:
    from jakiro_runtime.engine import Engine

_ROW_STEP = 8  # trees that were pruned are padded to a multiple of this: few shapes, few bindings


class _Tree(NamedTuple):
    """What a round verifies under the root: [nodes] each; empty with speculation off."""

    tokens: np.ndarray
    parents: np.ndarray


_NO_TREE = _Tree(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Decoder:
    """Caches and calls of a batch of sequences.

    Args:
        speculate: False decodes with the target alone, in the same loop with empty trees
        chunk: rows of a prompt that are processed in one call
        nodes: verify only the best so many nodes of the tree that the engine drafts

    target_seconds, draft_seconds: time spent in the graphs so far
    """

    def __init__(self, engine: Engine, batch: int, speculate: bool, chunk: int, nodes: int | None) -> None:
        memory = engine.target.memory()
        self.target = TargetCall(engine.target, engine.manifest, batch, memory)
        self.draft = DraftCall(engine.draft, engine.manifest, batch, memory) if speculate else None
        self.levels = engine.manifest.draft.levels if speculate else 0
        self.target_seconds = self.draft_seconds = 0.0
        self._chunk, self._nodes = chunk, nodes
        rows = engine.manifest.draft.nodes + 1
        self._mask, self._depths = np.zeros((batch, rows, rows), bool), np.zeros((batch, rows), np.int64)
        self._tokens = np.zeros((batch, rows), np.int64)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget what the caches hold of a sequence from `length` on."""
        self.target.cache.truncate(sequence, length)
        if self.draft:
            self.draft.cache.truncate(sequence, length)

    def held(self, sequence: int) -> int:
        """How many tokens of a sequence every cache holds."""
        target = int(self.target.cache.lengths[sequence])
        return min(target, int(self.draft.cache.lengths[sequence])) if self.draft else target

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop every other sequence."""
        self.target.keep(sequences)
        if self.draft:
            self.draft.keep(sequences)

    def prefill(self, answers: Sequence[Answer]) -> list[list[int]]:
        """Process what the caches do not hold of each prompt; the first token of each answer."""
        starts = [int(length) for length in self.target.cache.lengths]
        waiting = [answer.tokens[start:] for answer, start in zip(answers, starts, strict=True)]
        if self.draft:
            self.draft.features.lengths[:] = 0
        calls = _spans([len(ids) for ids in waiting], self._chunk)
        logits = self._needs_logits(answers)
        for spans in calls:
            counts = np.array([stop - start for start, stop in spans])
            width = int(counts.max())
            tokens = np.zeros((len(answers), width), np.int64)
            for number, (start, stop) in enumerate(spans):
                tokens[number, : stop - start] = waiting[number][start:stop]
            depths = np.broadcast_to(np.arange(width), tokens.shape)
            mask = np.broadcast_to(np.tri(width, dtype=bool), (len(answers), width, width))
            self._run_target(tokens, depths, mask, counts, True, logits and spans is calls[-1])
            self._accept([range(count) for count in counts.tolist()])
        return [[self._choose(answer, number, logits, 0, [])] for number, answer in enumerate(answers)]

    def round(self, answers: Sequence[Answer]) -> list[list[int]]:
        """Draft, verify and commit; the tokens each answer gained: what it accepted of its tree, and one more."""
        trees = self._grow(answers)
        nodes = max(len(tree.tokens) for tree in trees)
        full = self._mask.shape[1] if self._nodes is None else min(self._nodes + 1, self._mask.shape[1])
        rows = nodes + 1 if nodes + 1 in (1, full) else min(full, -(-(nodes + 1) // _ROW_STEP) * _ROW_STEP)
        batch = len(answers)
        tokens, depths = self._tokens[:batch, :rows], self._depths[:batch, :rows]
        mask = self._mask[:batch, :rows, :rows]
        counts = np.empty(batch, np.int64)
        for number, (answer, tree) in enumerate(zip(answers, trees, strict=True)):
            count = counts[number] = len(tree.tokens) + 1
            tokens[number, 0], tokens[number, 1:count] = answer.tokens[-1], tree.tokens
            fill_mask(tree.parents, mask[number], depths[number])
        logits = self._needs_logits(answers)
        self._run_target(tokens, depths, mask, counts, False, logits)
        kept, gained = [], []
        for number, (answer, tree) in enumerate(zip(answers, trees, strict=True)):
            path, chosen = walk(*tree, partial(self._choose, answer, number, logits))
            answer.stats.count_round(len(path) - 1)
            kept.append(path)
            gained.append(chosen)
        self._accept(kept)
        return gained

    def _accept(self, rows: Sequence[Sequence[int]]) -> None:
        """Keep these rows of the last verification, for each sequence: their keys, and their features to draft behind."""
        if self.draft:
            self.draft.accept(self.target.features, rows)
        self.target.commit(rows)

    def _grow(self, answers: Sequence[Answer]) -> list[_Tree]:
        """Draft behind the tokens that were just accepted, given the features of the rows before them."""
        if self.draft is None:
            return [_NO_TREE] * len(answers)
        started = time.perf_counter()
        accepted = zip(answers, self.draft.cache.lengths.tolist(), self.draft.features.lengths.tolist(), strict=True)
        after = [answer.tokens[first + 1 : first + 1 + rows] for answer, first, rows in accepted]  # behind each feature
        few = self.levels + 1
        width = few if max(map(len, after)) <= few else self._chunk
        for spans in _spans([len(ids) for ids in after], width):
            drafted = self.draft.run(
                [ids[start:stop] for ids, (start, stop) in zip(after, spans, strict=True)],
                [start for start, _ in spans],
                width,
            )
        self.draft.features.lengths[:] = 0
        self.draft_seconds += time.perf_counter() - started
        tokens, parents, scores = drafted
        return [self._prune(tokens[n], parents[n], scores[n], answer.sampler.constraint) for n, answer in enumerate(answers)]

    def _prune(self, tokens: np.ndarray, parents: np.ndarray, scores: Array, constraint: Constraint | None) -> _Tree:
        """The part of a tree worth verifying: the best nodes, and of these what the constraint allows."""
        if self._nodes is not None and self._nodes < len(tokens):
            kept = best_nodes(np.asarray(scores), parents, self._nodes)
            tokens, parents = closed(tokens, parents, kept)
        if constraint is not None:
            tokens, parents = closed(tokens, parents, _allowed(tokens, parents, constraint))
        return _Tree(tokens, parents)

    def _run_target(
        self, tokens: np.ndarray, depths: np.ndarray, mask: np.ndarray, counts: np.ndarray, last_only: bool, logits: bool
    ) -> None:
        started = time.perf_counter()
        self.target.run(tokens, depths, mask, counts, last_only, logits)
        self.target_seconds += time.perf_counter() - started

    @staticmethod
    def _needs_logits(answers: Sequence[Answer]) -> bool:
        return any(answer.sampler.needs_logits for answer in answers)

    def _choose(self, answer: Answer, number: int, logits: bool, row: int, path: list[int]) -> int:
        wanted = np.asarray(self.target.logits[number, row]) if logits and answer.sampler.needs_logits else None
        return answer.choose(int(self.target.next_tokens[number, row]), wanted, path)


def _spans(lengths: Sequence[int], width: int) -> list[list[tuple[int, int]]]:
    """Cut sequences into calls of at most `width`, aligned at their ends: the last call has every sequence's last row."""
    calls = -(-max(lengths) // width)
    return [[(max(0, n - (calls - c) * width), max(0, n - (calls - c - 1) * width)) for n in lengths] for c in range(calls)]


def _allowed(tokens: np.ndarray, parents: np.ndarray, constraint: Constraint) -> np.ndarray:
    """The nodes whose whole path the constraint allows, ascending."""
    paths: list[list[int] | None] = [[]]
    for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True):
        above = paths[parent]
        path = None if above is None else [*above, token]
        paths.append(path if path and constraint.valid_prefix(path) == len(path) else None)
    return np.array([node for node, path in enumerate(paths[1:]) if path], np.int64)
