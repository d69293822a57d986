"""Trees along fixed paths: from what a wide one accepts, the best of every size.

A node is accepted only with its parent, so the nodes that are accepted most often form a tree by themselves (the observation
behind Medusa's trees, arXiv 2401.10774). A tree that is known beforehand passes only the nodes that have children, and needs no
second choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from jakiro_export.heads.trees import StaticPaths
from jakiro_export.tree_search.traces import DraftTrace

_LEVELS, _RANKS = 4, 6  # of the wide tree: the product of its nodes' places, from 1 on, is at most _RANKS
SIZES = (1, 2, 3, 4, 6, 8, 12)
"""Nodes of the trees that are compared."""


def wide(max_top_k: int) -> StaticPaths:
    """A tree of more paths than are worth verifying; the head proposes `max_top_k` tokens."""
    return StaticPaths(sorted(_paths((), _RANKS, max_top_k), key=lambda path: (len(path), path)))


def _paths(start: tuple[int, ...], left: int, max_top_k: int) -> Iterator[tuple[int, ...]]:
    if len(start) < _LEVELS:
        for rank in range(min(left, max_top_k)):
            yield (*start, rank)
            yield from _paths((*start, rank), left // (rank + 1), max_top_k)


def best(tree: StaticPaths, traces: Sequence[DraftTrace], nodes: int) -> StaticPaths:
    """The `nodes` nodes of a tree that were accepted most often in its traces.

    A candidate counts for no more than the better ones beside it: that a worse one was right more often is chance.
    """
    seen = Counter(node for trace in traces for path in trace.nodes for node in path)
    taken: dict[tuple[int, ...], int] = {}
    for number, path in enumerate(tree.paths):  # parents, and better candidates, come first
        above, beside = path[:-1], (*path[:-1], path[-1] - 1)
        taken[path] = min([seen[number], *(taken[other] for other in (above, beside) if other in taken)])
    chosen = sorted(tree.paths, key=lambda path: (-taken[path], len(path), path))[:nodes]
    return StaticPaths(sorted(chosen, key=lambda path: (len(path), path)))
