"""Proposers: the trees that a round verifies, from the draft head and from n-grams of the text."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from jakiro_runtime.backends import Array, Memory
from jakiro_runtime.bundle import Bundle
from jakiro_runtime.decoding.draft_runner import DraftRunner
from jakiro_runtime.decoding.ngram import NO_PROPOSAL, NGramProposer, Proposal
from jakiro_runtime.decoding.node_budget import FixedBudget, NodeBudget, mean_probs
from jakiro_runtime.decoding.sequence import TokenSequence
from jakiro_runtime.decoding.stats import RoundCounts
from jakiro_runtime.decoding.tree import AcceptedPath, DraftTree, merge_chain, subtree, top_nodes
from jakiro_runtime.sampling import Constraint

_NGRAM_NODES = 15  # nodes of n-grams at most, where more of them than the head drafts may be verified
_UNDRAFTED = 32  # rows that may wait for a draft: a session that goes on processes them again


class Proposer(Protocol):
    """Where trees come from; one for a batch.

    draft: the head, with its share of the sequences' state; None without one
    levels: the most tokens of a tree that one round can accept
    row_counts: numbers of rows that a verification is padded to, ascending
    """

    levels: int
    row_counts: list[int]

    @property
    def draft(self) -> DraftRunner | None: ...

    def start(self, sequences: Sequence[TokenSequence]) -> None:
        """Answers begin; `tokens` of each sequence is its prompt."""

    def propose(self, sequences: Sequence[TokenSequence], capacity: int) -> list[DraftTree]:
        """A tree for each sequence. capacity: slots of the target's cache, which its attention runs over."""

    def extend(self, features: Array, rows: Sequence[Sequence[int]]) -> None:
        """These rows of a target call were accepted, for each sequence; features [1, batch, 1, rows, hidden]."""

    def observe(self, trees: Sequence[DraftTree], accepted: Sequence[AcceptedPath], capacity: int) -> list[RoundCounts]:
        """Learn what became of the trees of the last `propose`; what to count of the round, for each sequence."""

    def catch_up(self, sequences: Sequence[TokenSequence]) -> None:
        """Draft after accepted rows that wait for it, as far as the token after each is known; gives no trees."""

    def assemble(self, parts: Sequence[tuple[Proposer, int]]) -> None:
        """Hold copies of these sequences, (proposer, number) each of this one's class, in place of its own."""


class NoProposer:
    """Decoding with the target alone: the same loop with empty trees."""

    draft = None
    levels = 0

    def __init__(self) -> None:
        self.row_counts = [1]

    def start(self, sequences: Sequence[TokenSequence]) -> None: ...

    def propose(self, sequences: Sequence[TokenSequence], capacity: int) -> list[DraftTree]:
        return [DraftTree([], [])] * len(sequences)

    def extend(self, features: Array, rows: Sequence[Sequence[int]]) -> None: ...

    def observe(self, trees: Sequence[DraftTree], accepted: Sequence[AcceptedPath], capacity: int) -> list[RoundCounts]:
        return [RoundCounts()] * len(trees)

    def catch_up(self, sequences: Sequence[TokenSequence]) -> None: ...

    def assemble(self, parts: Sequence[tuple[Proposer, int]]) -> None: ...


class _HeadTree(NamedTuple):
    """A tree of the head's, [nodes] each. scores: cumulative log-probabilities, in the backend's memory."""

    tokens: list[int]
    parents: list[int]
    scores: Array


class _MergedTree(NamedTuple):
    """The head's nodes, `drafted` of them, and n-grams' after them, [nodes] each. probs: None where all are verified."""

    tokens: list[int]
    parents: list[int]
    probs: list[float] | None
    drafted: int


class TreeProposer:
    """Trees of the draft head and of n-grams, merged and cut to the nodes that are worth their rows.

    Args:
        chunk: rows of a prompt that are drafted after in one call
        nodes: verify only the best of every tree, no more than the engine drafts; None verifies as many as are worth their rows
            where the engine was exported with --tree auto, and all of them elsewhere
        ngrams: propose what followed the last tokens where they stood before, too
    """

    def __init__(self, bundle: Bundle, batch: int, memory: Memory, chunk: int, nodes: int | None, ngrams: bool) -> None:
        self.draft = DraftRunner(bundle.draft, bundle.manifest, batch, memory)
        self.levels = bundle.manifest.draft.levels
        self.budget = _budget(bundle, batch, nodes, ngrams)
        self.row_counts = self.budget.row_counts
        self._new_budget = partial(_budget, bundle, nodes=nodes, ngrams=ngrams)
        self._chunk, self._use_ngrams = chunk, ngrams
        self._ngrams: list[NGramProposer] = []
        self._chains: list[Proposal] = []
        self._drafted = False
        few = self.levels + 1  # rows that most rounds accept at most
        self._widths = [width for step in range(5) if (width := few << step) < chunk or step < 3]

    def start(self, sequences: Sequence[TokenSequence]) -> None:
        self.budget.start()
        self._ngrams = [NGramProposer(sequence.tokens) for sequence in sequences] if self._use_ngrams else []
        self.draft.features.lengths[:] = 0

    def propose(self, sequences: Sequence[TokenSequence], capacity: int) -> list[DraftTree]:
        chains = self._chains = self._ngram_chains(sequences, capacity)
        self._drafted = self._should_draft(sequences, chains)
        drafts: Sequence[_HeadTree | None] = self._draft(sequences) if self._drafted else [None] * len(sequences)
        trees = zip(sequences, drafts, chains, strict=True)
        merged = [self._merged(draft if sequence.speculate else None, chain) for sequence, draft, chain in trees]
        ranked = [tree.probs for tree in merged if tree.probs is not None]
        count = self.budget.count(mean_probs(ranked), capacity) if len(ranked) == len(merged) else self.budget.most
        return [self._cut(tree, count, sequence.constraint) for tree, sequence in zip(merged, sequences, strict=True)]

    def _ngram_chains(self, sequences: Sequence[TokenSequence], capacity: int) -> list[Proposal]:
        """What may come next in each sequence, as far as it is worth verifying."""
        chains = [ngrams.propose(self.budget.most) for ngrams in self._ngrams] or [NO_PROPOSAL] * len(sequences)
        chains = [chain if sequence.speculate else NO_PROPOSAL for sequence, chain in zip(sequences, chains, strict=True)]
        if not any(chain.tokens for chain in chains):
            return chains
        count = self.budget.count(mean_probs([chain.acceptance_probs for chain in chains]), capacity)
        return [chain.first(count) if chain.tokens else chain for chain in chains]

    def _should_draft(self, sequences: Sequence[TokenSequence], chains: Sequence[Proposal]) -> bool:
        """Not where nobody speculates or chains cannot be bettered, nor where drafts of late were not worth their time."""
        if not any(sequence.speculate for sequence in sequences):
            return False
        waiting = max(self.draft.features.lengths.tolist())
        if waiting <= _UNDRAFTED and all(chain.is_unbeatable for chain in chains):
            return False
        return self.budget.should_draft()

    def _draft(self, sequences: Sequence[TokenSequence]) -> list[_HeadTree]:
        """Draft after the tokens that were just accepted, given the features of the rows before them."""
        accepted = zip(sequences, self.draft.cache.lengths.tolist(), self.draft.features.lengths.tolist(), strict=True)
        after = [sequence.tokens[first + 1 : first + 1 + rows] for sequence, first, rows in accepted]  # each feature's next token
        longest = max(map(len, after))
        width = next((size for size in self._widths if longest <= size), self._chunk)
        for spans in call_spans([len(ids) for ids in after], width):
            tokens = [ids[start:stop] for ids, (start, stop) in zip(after, spans, strict=True)]
            output = self.draft.run(tokens, [start for start, _ in spans], width)
        self.draft.features.lengths[:] = 0
        trees = zip(output.tokens.tolist(), output.parents.tolist(), strict=True)
        return [_HeadTree(*tree, output.scores[number]) for number, tree in enumerate(trees)]

    def _merged(self, draft: _HeadTree | None, chain: Proposal) -> _MergedTree:
        """A drafted tree and a chain as one tree."""
        tokens, parents = (draft.tokens, draft.parents) if draft else ([], [])
        drafted = len(tokens)
        if not chain.tokens and self.budget.takes_all(drafted):
            return _MergedTree(tokens, parents, None if drafted else [], drafted)
        probs = self.budget.acceptance_probs(np.asarray(draft.scores)) if draft else []
        if chain.tokens:
            merge_chain(tokens, parents, probs, *chain)
        return _MergedTree(tokens, parents, probs, drafted)

    def _cut(self, tree: _MergedTree, count: int, constraint: Constraint | None) -> DraftTree:
        """The best `count` nodes of a tree, and of these what the constraint allows."""
        tokens, parents = tree.tokens, tree.parents
        kept: Sequence[int] = range(len(tokens)) if tree.probs is None else top_nodes(tree.probs, parents, count)
        if constraint is not None:
            kept = _allowed(tokens, parents, kept, constraint)
        if len(kept) < len(tokens):
            tokens, parents = subtree(tokens, parents, kept)
        return DraftTree(tokens, parents, bisect_left(kept, tree.drafted))

    def extend(self, features: Array, rows: Sequence[Sequence[int]]) -> None:
        self.draft.append_features(features, rows)  # where nothing was drafted, the next draft continues from these rows too

    def observe(self, trees: Sequence[DraftTree], accepted: Sequence[AcceptedPath], capacity: int) -> list[RoundCounts]:
        count = len(trees)
        if self._drafted:
            gains = zip(accepted, self._chains, strict=True)
            beyond = sum(len(path.tokens) - 1 - chain.matches(path.tokens[:-1]) for path, chain in gains)
            self.budget.observe_acceptance(sum(tree.from_head for tree in trees) / count, beyond / count, capacity)
        if self._use_ngrams:
            nodes, gained = max(len(tree.tokens) for tree in trees), sum(len(path.tokens) for path in accepted)
            self.budget.observe_throughput(nodes, gained / count, self._drafted, capacity)
        return [
            RoundCounts(len(tree.tokens), self._drafted, bisect_right(path.rows, tree.from_head) - 1)
            for tree, path in zip(trees, accepted, strict=True)
        ]

    def catch_up(self, sequences: Sequence[TokenSequence]) -> None:
        if max(self.draft.features.lengths.tolist()):
            self._draft(sequences)

    def assemble(self, parts: Sequence[tuple[Proposer, int]]) -> None:
        ours = [(proposer, number) for proposer, number in parts if isinstance(proposer, TreeProposer)]
        before = len(self.draft.cache.lengths)
        self._ngrams = [proposer._ngrams[number] for proposer, number in ours] if self._use_ngrams else []
        self.draft.assemble([(proposer.draft, number) for proposer, number in ours])
        if before != len(ours):  # what rows cost depends on the batch
            self.budget = self._new_budget(len(ours))
            self.row_counts = self.budget.row_counts


def _budget(bundle: Bundle, batch: int, nodes: int | None, ngrams: bool) -> FixedBudget | NodeBudget:
    plan, drafted = bundle.manifest.tree, bundle.manifest.draft.nodes
    if plan is None or nodes is not None:
        return FixedBudget(min(nodes or drafted, drafted))
    # n-grams may be worth more rows than a tree has; graphs that were built for fixed shapes take no more
    most = max(drafted, _NGRAM_NODES) if ngrams and bundle.flexible_rows else drafted
    return NodeBudget(plan, drafted, most, batch)


def call_spans(lengths: Sequence[int], width: int) -> list[list[tuple[int, int]]]:
    """Cut sequences into calls of at most `width` rows, aligned at their ends: the last call has every sequence's last row."""
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
