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


def best(tree: StaticPaths, traces: Sequence[DraftTrace], nodes: int) -> list[int]:
    """The `nodes` nodes of a tree that were accepted most often in its traces, by their numbers, ascending.

    A node counts for no more than its higher-ranked siblings: that a lower-ranked one was right more often is chance.
    """
    seen = Counter(node for trace in traces for path in trace.accepted for node in path)
    taken: dict[tuple[int, ...], int] = {}
    for number, path in enumerate(tree.paths):  # parents, and higher-ranked siblings, come first
        parent, sibling = path[:-1], (*path[:-1], path[-1] - 1)
        taken[path] = min([seen[number], *(taken[other] for other in (parent, sibling) if other in taken)])
    numbers = sorted(range(len(tree.paths)), key=lambda n: (-taken[tree.paths[n]], n))
    return sorted(numbers[:nodes])
