"""Search space of tree shapes, and the user's constraints on it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from jakiro_export.heads.config import TreeShape

ROWS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
"""Rows of a target pass that are timed."""
DEPTHS, TOP_KS = (1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 6, 8)


class TreeConstraints(NamedTuple):
    """What the user fixed of a tree; None is searched."""

    depth: int | None
    top_k: int | None
    nodes: int | None

    def depths(self) -> list[int]:
        return [self.depth] if self.depth else list(DEPTHS)

    @property
    def shapeless(self) -> bool:
        """Whether paths may be fixed one by one: nobody asked for a depth or a top_k."""
        return self.depth is None and self.top_k is None

    def top_ks(self, max_top_k: int) -> list[int]:
        """max_top_k: the number of tokens that the head may propose."""
        return [self.top_k] if self.top_k else [k for k in TOP_KS if k <= max_top_k] or [max_top_k]


def widest(depth: int, top_k: int, constraints: TreeConstraints, like: TreeShape) -> TreeShape:
    """The largest tree of this depth and top_k that may be worth verifying on a CPU, or with as many nodes as the user fixed."""
    shape = replace(like, depth=depth, top_k=top_k, nodes=constraints.nodes or max(ROWS) - 1)
    return replace(shape, nodes=min(shape.nodes, shape.candidates))


def node_counts(shape: TreeShape) -> list[int]:
    """Numbers of nodes whose passes were timed, up to the shape's own number."""
    return [rows - 1 for rows in ROWS if rows <= shape.nodes] + [shape.nodes]
