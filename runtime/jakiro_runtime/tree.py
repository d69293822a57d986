"""A draft tree as arrays, and the integer bookkeeping of a round. Pure functions; no model in sight.

Rows of a verification call are the root, row 0, and the tree's nodes, node i in row i. A parent's row precedes its children's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Choose = Callable[[int, list[int]], int]
"""The target's next token behind a row, given the tokens of the path that leads to it (the root's not among them)."""


def is_tree(parents: np.ndarray) -> bool:
    """Whether every node's parent precedes it. parents [nodes]: 0 for the root, else the parent's row."""
    return bool((parents >= 0).all() and (parents < np.arange(1, len(parents) + 1)).all())


def fill_mask(parents: np.ndarray, mask: np.ndarray, depths: np.ndarray) -> None:
    """Who sees whom: a row sees itself and its ancestors.

    Args:
        parents: [nodes], the row of each node's parent
        mask: written, [rows, rows] bool, rows > nodes; rows after the tree's are padding and see themselves
        depths: written, [rows]: 0 for the root and for padding
    """
    mask[...] = False
    np.fill_diagonal(mask, True)
    depths[...] = 0
    for row, parent in enumerate(parents.tolist(), 1):
        mask[row] = mask[parent]
        mask[row, row] = True
        depths[row] = depths[parent] + 1


def walk(tokens: np.ndarray, parents: np.ndarray, choose: Choose) -> tuple[list[int], list[int]]:
    """Follow the target's choices down the tree for as long as they are in it.

    This is exact for any target distribution: the tree is a set of tokens and takes no part in the draw.

    Args:
        tokens, parents: [nodes]
        choose: the target's next token behind a row; asked for visited rows only, in order

    Returns:
        rows: the accepted rows, the root's first, [1 + accepted]
        chosen: the target's choice behind each of them, [1 + accepted]; all but the last are the accepted nodes' tokens
    """
    children: dict[tuple[int, int], int] = {}
    for row, (token, parent) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True), 1):
        children.setdefault((parent, token), row)
    rows, chosen = [0], [choose(0, [])]
    while (rows[-1], chosen[-1]) in children:
        rows.append(children[rows[-1], chosen[-1]])
        chosen.append(choose(rows[-1], chosen))
    return rows, chosen


def best_nodes(scores: np.ndarray, parents: np.ndarray, count: int) -> np.ndarray:
    """The `count` best nodes of a tree, in their order, closed under parents.

    A child's score is never above its parent's, so the best nodes hold their own ancestors; equal scores go to the lower number.

    Args:
        scores, parents: [nodes]

    Returns:
        node numbers from 0, ascending, [min(count, nodes)]
    """
    order = np.argsort(-scores, kind="stable")[:count]
    kept = np.sort(order)
    rows = set((kept + 1).tolist()) | {0}
    return np.array([node for node in kept.tolist() if int(parents[node]) in rows], np.int64)


def closed(tokens: np.ndarray, parents: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tree of some nodes, renumbered: tokens and parents [kept]. `kept` is ascending and closed under parents."""
    row = np.zeros(len(tokens) + 1, np.int64)
    row[kept + 1] = np.arange(1, len(kept) + 1)
    return tokens[kept], row[parents[kept]]
