"""Accepted draft nodes by rank: among siblings, and in the whole tree.

Trees are recorded from outside the decoding loop, through the draft graph that it runs, so that no round takes longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jakiro_runtime.backends import Binding, Buffers, Graph, Memory
from jakiro_runtime.decoding.tree import subtree, top_nodes


class DraftedTree(NamedTuple):
    """A drafted tree, [nodes] each: tokens, parents (0 the root, else the parent's row), cumulative log-probabilities."""

    tokens: np.ndarray
    parents: np.ndarray
    scores: np.ndarray


_NO_TREE = DraftedTree(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


class RecordingGraph:
    """A draft graph that records where its last tree was written."""

    def __init__(self, graph: Graph) -> None:
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._graph = graph
        self._last: Buffers | None = None

    def memory(self) -> Memory:
        return self._graph.memory()

    def bind(self, inputs: Buffers, outputs: Buffers) -> _RecordingBinding:
        return _RecordingBinding(self, self._graph.bind(inputs, outputs), outputs)

    def tree(self, nodes: int) -> DraftedTree:
        """What was verified of the tree that was drafted last: its best `nodes` nodes."""
        if self._last is None or nodes == 0:
            return _NO_TREE
        names = ("tree_tokens", "tree_parents", "tree_scores")
        tokens, parents, scores = (self._last[name][0].copy() for name in names)
        kept = top_nodes(scores.tolist(), parents.tolist(), nodes)
        kept_tokens, kept_parents = subtree(tokens.tolist(), parents.tolist(), kept)
        return DraftedTree(np.array(kept_tokens), np.array(kept_parents), scores[kept])

    def record(self, outputs: Buffers) -> None:
        self._last = outputs


class _RecordingBinding:
    def __init__(self, recording: RecordingGraph, binding: Binding, outputs: Buffers) -> None:
        self._recording, self._binding, self._outputs = recording, binding, outputs

    def run(self) -> None:
        self._binding.run()
        self._recording.record(self._outputs)


@dataclass
class RankCounts:
    """How often nodes were offered and accepted, by rank.

    offered, taken: by rank among siblings: how often a visited row had such a child, and how often the target chose it
    taken_in_tree: by rank in the whole tree: how often the node was accepted
    rounds: trees counted
    """

    offered: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    taken_in_tree: list[int] = field(default_factory=list)
    rounds: int = 0

    def count(self, tree: DraftedTree, tokens: Sequence[int]) -> None:
        """Count one round: its tree, and the tokens that the answer gained."""
        order = np.argsort(-tree.scores, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self._extend(self.taken_in_tree, len(order))
        self.rounds += 1
        row = 0
        for token in tokens:
            siblings = [int(node) for node in order if tree.parents[node] == row]
            self._extend(self.offered, len(siblings))
            self._extend(self.taken, len(siblings))
            for number in range(len(siblings)):
                self.offered[number] += 1
            match = next((node for node in siblings if tree.tokens[node] == token), None)
            if match is None:
                return
            self.taken[siblings.index(match)] += 1
            self.taken_in_tree[rank[match]] += 1
            row = match + 1

    def as_dict(self) -> dict[str, Any]:
        """Shares, best rank first; `by_sibling_rank` of the visited rows that had such a child, `by_tree_rank` of all rounds."""
        return {
            "rounds": self.rounds,
            "by_sibling_rank": [round(taken / offered, 4) for taken, offered in zip(self.taken, self.offered, strict=True)],
            "offered_by_sibling_rank": list(self.offered),
            "by_tree_rank": [round(taken / max(1, self.rounds), 4) for taken in self.taken_in_tree],
        }

    @staticmethod
    def _extend(counts: list[int], length: int) -> None:
        counts += [0] * (length - len(counts))
