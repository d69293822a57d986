"""The loop's two steps for a batch of answers in lockstep: process prompts; draft trees, verify them in one pass, walk."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jakiro_runtime.backends import Array
from jakiro_runtime.decoding.ngram import NO_PROPOSAL, NGramProposer, Proposal
from jakiro_runtime.decoding.node_budget import NodeBudget
from jakiro_runtime.decoding.runners import DraftRunner, TargetRunner
from jakiro_runtime.decoding.sequence import Answer
from jakiro_runtime.decoding.tree import Choose, accept, merge_chain, subtree, top_nodes, tree_mask
from jakiro_runtime.sampling.sampler import Constraint

if TYPE_CHECKING:
    from jakiro_runtime.engine import Engine

_ROW_STEP = 8  # trees that were pruned are padded to a multiple of this: few shapes, few bindings
_GUESSED = 15  # nodes that are guessed at most, where more of them than the head drafts may be verified
_UNDRAFTED = 32  # rows that may wait for a draft: a session that goes on processes them again


class _Draft(NamedTuple):
    """A tree of the head's, [nodes] each. scores: cumulative log-probabilities, in the backend's memory."""

    tokens: list[int]
    parents: list[int]
    scores: Array


class _Tree(NamedTuple):
    """What a round verifies under the root, [nodes] each. drafted: how many of them the head has drafted; they come first."""

    tokens: list[int]
    parents: list[int]
    drafted: int


class Decoder:
    """Caches and calls of a batch of sequences.

    Args:
        speculate: False decodes with the target alone, in the same loop with empty trees
        chunk: rows of a prompt that are processed in one call
        nodes: verify only the best so many nodes of every tree, no more than the engine drafts; None verifies as many as are
            worth their rows where the engine was exported with --tree auto and decodes one sequence, and all of them elsewhere
        lookup: what followed the last tokens where they stood before is in the trees, too
    """

    def __init__(self, engine: Engine, batch: int, speculate: bool, chunk: int, nodes: int | None, lookup: bool) -> None:
        memory = engine.target.memory()
        self.target = TargetRunner(engine.target, engine.manifest, batch, memory)
        self.draft = DraftRunner(engine.draft, engine.manifest, batch, memory) if speculate else None
        self.levels = engine.manifest.draft.levels if speculate else 0
        self._chunk, self._lookup = chunk, lookup and speculate
        self._lookups: list[NGramProposer] = []
        plan, drafted = engine.manifest.tree, engine.manifest.draft.nodes
        self._most = min(nodes or drafted, drafted)
        self._choice = None
        if plan and speculate and nodes is None and batch == 1:
            # what is guessed may be worth more rows than a tree has; engines that were built for a GPU take no more
            if self._lookup and engine.backend == "onnxruntime":
                self._most = max(drafted, _GUESSED)
            self._choice = NodeBudget(plan, drafted, self._most)
        # the numbers of rows that are called: few, since each is bound once. What falls between them is padded
        chosen = range(_ROW_STEP, 1 + self._most, _ROW_STEP) if self._choice is None else [n + 1 for n in self._choice.counts]
        self._sizes = sorted({1, *chosen, 1 + self._most})
        few = self.levels + 1  # rows that most rounds accept at most
        self._widths = [width for step in range(5) if (width := few << step) < chunk or step < 3]

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
        self._lookups = [self._lookups[number] for number in sequences] if self._lookup else []
        self.target.keep(sequences)
        if self.draft:
            self.draft.keep(sequences)

    def prefill(self, answers: Sequence[Answer]) -> list[list[int]]:
        """Process what the caches do not hold of each prompt; the first token of each answer."""
        if self._choice:
            self._choice.start()
        self._lookups = [NGramProposer(answer.tokens) for answer in answers] if self._lookup else []
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
            self.target.run(tokens, depths, mask, logits and spans is calls[-1], np.maximum(counts - 1, 0))
            self._accept([range(count) for count in counts.tolist()])
        return [[self._chooser(answer, number, logits)(0, [])] for number, answer in enumerate(answers)]

    def round(self, answers: Sequence[Answer]) -> list[list[int]]:
        """Draft, verify and commit; the tokens each answer gained: what it accepted of its tree, and one more."""
        guesses = self._guesses(len(answers))
        drafts = self._grow(answers) if self._drafts(guesses) else None
        trees = [
            self._tree(drafts[number] if drafts else None, guess, answer.sampler.constraint)
            for number, (answer, guess) in enumerate(zip(answers, guesses, strict=True))
        ]
        logits = self._verify(answers, trees)
        walks = [
            accept(tree.tokens, tree.parents, self._chooser(answer, number, logits))
            for number, (answer, tree) in enumerate(zip(answers, trees, strict=True))
        ]
        for answer, tree, (path, _) in zip(answers, trees, walks, strict=True):
            looked_up = len(path) - bisect_right(path, tree.drafted)
            answer.stats.count_round(len(path) - 1, len(tree.tokens), drafts is not None, looked_up)
        if self._choice:
            self._note(self._choice, trees[0], guesses[0], walks[0][1], drafts is not None)
        self._accept([path for path, _ in walks])  # where nothing was drafted, the next draft continues from these rows too
        return [chosen for _, chosen in walks]

    def _guesses(self, count: int) -> list[Proposal]:
        """What may come next in each answer, as far as it is worth verifying."""
        guesses = [lookup.guess(self._most) for lookup in self._lookups] or [NO_PROPOSAL] * count
        if self._choice and guesses[0].tokens:
            guesses = [guesses[0].first(self._choice.count(guesses[0].chances, self.target.cache.capacity))]
        return guesses

    def _note(self, choice: NodeBudget, tree: _Tree, guess: Proposal, chosen: list[int], drafted: bool) -> None:
        """Tell the choice how a round went that verified a tree and chose these tokens."""
        capacity = self.target.cache.capacity
        if drafted:
            choice.observe_acceptance(tree.drafted, len(chosen) - 1 - guess.right(chosen[:-1]), capacity)
        if self._lookup:
            choice.observe_throughput(len(tree.tokens), len(chosen), drafted, capacity)

    def _drafts(self, guesses: Sequence[Proposal]) -> bool:
        """Whether this round drafts: not where guesses cannot be bettered, nor where drafts of late were not worth their time."""
        if self.draft is None:
            return False
        waiting = max(self.draft.features.lengths.tolist())
        if waiting <= _UNDRAFTED and all(guess.settles for guess in guesses):
            return False
        return self._choice is None or self._choice.should_draft()

    def _verify(self, answers: Sequence[Answer], trees: Sequence[_Tree]) -> bool:
        """Pass roots and trees through the target; whether it gave logits."""
        nodes = max(len(tree.tokens) for tree in trees)
        rows = next(size for size in self._sizes if size > nodes)
        tokens = [
            [answer.tokens[-1], *tree.tokens, *[0] * (rows - 1 - len(tree.tokens))]
            for answer, tree in zip(answers, trees, strict=True)
        ]
        masks, depths = zip(*(tree_mask(tree.parents, rows) for tree in trees), strict=True)
        logits = self._needs_logits(answers)
        self.target.run(tokens, depths, masks, logits)
        return logits

    def _accept(self, rows: Sequence[Sequence[int]]) -> None:
        """Keep these rows of the last verification, for each sequence: their keys, and their features to draft behind."""
        if self.draft:
            self.draft.accept(self.target.features, rows)
        self.target.commit(rows)

    def _grow(self, answers: Sequence[Answer]) -> list[_Draft]:
        """Draft behind the tokens that were just accepted, given the features of the rows before them."""
        assert self.draft is not None
        accepted = zip(answers, self.draft.cache.lengths.tolist(), self.draft.features.lengths.tolist(), strict=True)
        after = [answer.tokens[first + 1 : first + 1 + rows] for answer, first, rows in accepted]  # behind each feature
        longest = max(map(len, after))
        width = next((size for size in self._widths if longest <= size), self._chunk)
        for spans in _spans([len(ids) for ids in after], width):
            tokens, parents, scores = self.draft.run(
                [ids[start:stop] for ids, (start, stop) in zip(after, spans, strict=True)],
                [start for start, _ in spans],
                width,
            )
        self.draft.features.lengths[:] = 0
        return [_Draft(*tree, scores[number]) for number, tree in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True))]

    def _tree(self, draft: _Draft | None, guess: Proposal, constraint: Constraint | None) -> _Tree:
        """What is worth verifying of a drafted tree and a guess: the best nodes, and of these what the constraint allows."""
        tokens, parents = (draft.tokens, draft.parents) if draft else ([], [])
        drafted = len(tokens)
        kept: Sequence[int] = range(drafted)
        if guess.tokens or drafted > self._most or (draft and self._choice):
            kept = self._best(tokens, parents, self._chances(draft), guess)
        if constraint is not None:
            kept = _allowed(tokens, parents, kept, constraint)
        if len(kept) < len(tokens):
            tokens, parents = subtree(tokens, parents, kept)
        return _Tree(tokens, parents, bisect_left(kept, drafted))

    def _best(self, tokens: list[int], parents: list[int], chances: list[float], guess: Proposal) -> Sequence[int]:
        """The nodes to verify of a tree, once a guess has joined it."""
        merge_chain(tokens, parents, chances, *guess)
        count = self._most
        if self._choice:
            count = self._choice.count(sorted(chances, reverse=True), self.target.cache.capacity)
        return top_nodes(chances, parents, count)

    def _chances(self, draft: _Draft | None) -> list[float]:
        """How likely each drafted node is accepted: as --tree auto has counted, or else what the head says."""
        if draft is None:
            return []
        scores = np.asarray(draft.scores)
        return self._choice.acceptance_probs(scores) if self._choice else [math.exp(score) for score in scores.tolist()]

    @staticmethod
    def _needs_logits(answers: Sequence[Answer]) -> bool:
        return any(answer.sampler.needs_logits for answer in answers)

    def _chooser(self, answer: Answer, number: int, logits: bool) -> Choose:
        """How an answer's tokens are chosen behind the rows of the last target pass."""
        best, wanted = self.target.next_tokens[number].tolist(), logits and answer.sampler.needs_logits

        def choose(row: int, path: list[int]) -> int:
            return answer.choose(best[row], np.asarray(self.target.logits[number, row]) if wanted else None, path)

        return choose


def _spans(lengths: Sequence[int], width: int) -> list[list[tuple[int, int]]]:
    """Cut sequences into calls of at most `width`, aligned at their ends: the last call has every sequence's last row."""
    calls = -(-max(lengths) // width)
    return [[(max(0, n - (calls - c) * width), max(0, n - (calls - c - 1) * width)) for n in lengths] for c in range(calls)]


def _allowed(tokens: Sequence[int], parents: Sequence[int], kept: Sequence[int], constraint: Constraint) -> list[int]:
    """Of the nodes `kept`, ascending, those whose whole path the constraint allows."""
    paths: dict[int, list[int]] = {0: []}  # by row
    for node in kept:
        if parents[node] in paths:
            path = [*paths[parents[node]], tokens[node]]
            if constraint.valid_prefix(path) == len(path):
                paths[node + 1] = path
    return [row - 1 for row in paths if row]
