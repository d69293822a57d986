"""The loop's two steps for a batch of answers in lockstep: process prompts; draft trees, verify them in one pass, walk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jakiro_runtime.answer import Answer
from jakiro_runtime.backend import Array
from jakiro_runtime.calls import DraftCall, TargetCall
from jakiro_runtime.choice import NodeChoice
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
        nodes: verify only the best so many nodes of the tree that the engine drafts; None verifies as many as are worth their
            rows where the engine was exported with --tree auto and decodes one sequence, and all of them elsewhere
    """

    def __init__(self, engine: Engine, batch: int, speculate: bool, chunk: int, nodes: int | None) -> None:
        memory = engine.target.memory()
        self.target = TargetCall(engine.target, engine.manifest, batch, memory)
        self.draft = DraftCall(engine.draft, engine.manifest, batch, memory) if speculate else None
        self.levels = engine.manifest.draft.levels if speculate else 0
        self._chunk, self._nodes = chunk, nodes
        plan, drafted = engine.manifest.tree, engine.manifest.draft.nodes
        self._choice = NodeChoice(plan, drafted) if plan and speculate and nodes is None and batch == 1 else None
        full = 1 + min(nodes or drafted, drafted)
        # the numbers of rows that are called: few, since each is bound once. What falls between them is padded
        chosen = range(_ROW_STEP, full, _ROW_STEP) if self._choice is None else 1 + self._choice.counts
        self._sizes = [*sorted({1, *map(int, chosen), full})]
        self._mask, self._depths = np.zeros((batch, full, full), bool), np.zeros((batch, full), np.int64)
        self._tokens = np.zeros((batch, full), np.int64)

    @property
    def seconds(self) -> tuple[float, float]:
        """Spent in the draft graph and in the target graph so far."""
        return self.draft.seconds if self.draft else 0.0, self.target.seconds

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
        if self._choice:
            self._choice.start()
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
            self.target.run(tokens, depths, mask, counts, True, logits and spans is calls[-1])
            self._accept([range(count) for count in counts.tolist()])
        return [[self._choose(answer, number, logits, 0, [])] for number, answer in enumerate(answers)]

    def round(self, answers: Sequence[Answer]) -> list[list[int]]:
        """Draft, verify and commit; the tokens each answer gained: what it accepted of its tree, and one more."""
        drafting = self.draft is not None and (self._choice is None or self._choice.drafts())
        trees = self._grow(answers) if drafting else [_NO_TREE] * len(answers)
        nodes = max(len(tree.tokens) for tree in trees)
        rows = next(size for size in self._sizes if size > nodes)
        batch = len(answers)
        tokens, depths = self._tokens[:batch, :rows], self._depths[:batch, :rows]
        mask = self._mask[:batch, :rows, :rows]
        counts = np.empty(batch, np.int64)
        for number, (answer, tree) in enumerate(zip(answers, trees, strict=True)):
            count = counts[number] = len(tree.tokens) + 1
            tokens[number, 0], tokens[number, 1:count] = answer.tokens[-1], tree.tokens
            fill_mask(tree.parents, mask[number], depths[number])
        logits = self._needs_logits(answers)
        self.target.run(tokens, depths, mask, counts, False, logits)
        kept, gained = [], []
        for number, (answer, tree) in enumerate(zip(answers, trees, strict=True)):
            path, chosen = walk(*tree, partial(self._choose, answer, number, logits))
            answer.stats.count_round(len(path) - 1, len(tree.tokens), drafting)
            kept.append(path)
            gained.append(chosen)
        if self._choice and drafting:
            self._choice.note(len(trees[0].tokens), len(kept[0]) - 1, self.target.cache.capacity)
        self._accept(kept)  # where nothing was drafted, the next draft continues from these rows too
        return gained

    def _accept(self, rows: Sequence[Sequence[int]]) -> None:
        """Keep these rows of the last verification, for each sequence: their keys, and their features to draft behind."""
        if self.draft:
            self.draft.accept(self.target.features, rows)
        self.target.commit(rows)

    def _grow(self, answers: Sequence[Answer]) -> list[_Tree]:
        """Draft behind the tokens that were just accepted, given the features of the rows before them."""
        assert self.draft is not None
        accepted = zip(answers, self.draft.cache.lengths.tolist(), self.draft.features.lengths.tolist(), strict=True)
        after = [answer.tokens[first + 1 : first + 1 + rows] for answer, first, rows in accepted]  # behind each feature
        few, longest = self.levels + 1, max(map(len, after))
        width = next((size for size in (few, 2 * few, 4 * few) if longest <= size), self._chunk)
        for spans in _spans([len(ids) for ids in after], width):
            drafted = self.draft.run(
                [ids[start:stop] for ids, (start, stop) in zip(after, spans, strict=True)],
                [start for start, _ in spans],
                width,
            )
        self.draft.features.lengths[:] = 0
        tokens, parents, scores = drafted
        return [self._prune(tokens[n], parents[n], scores[n], answer.sampler.constraint) for n, answer in enumerate(answers)]

    def _prune(self, tokens: np.ndarray, parents: np.ndarray, scores: Array, constraint: Constraint | None) -> _Tree:
        """The part of a tree worth verifying: the best nodes, and of these what the constraint allows."""
        count = self._nodes
        if self._choice:
            count = self._choice.count(-np.sort(-np.asarray(scores)), self.target.cache.capacity)
        if count is not None and count < len(tokens):
            tokens, parents = closed(tokens, parents, best_nodes(np.asarray(scores), parents, count))
        if constraint is not None:
            tokens, parents = closed(tokens, parents, _allowed(tokens, parents, constraint))
        return _Tree(tokens, parents)

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
