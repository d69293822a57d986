"""A draft tree as lists, and the integer bookkeeping of a round. Pure functions; no model in sight.

Rows of a verification call are the root, row 0, and the tree's nodes, node i in row i. A parent's row precedes its children's.
Trees have a few dozen nodes at most, for which plain lists are quicker than arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Choose = Callable[[int, list[int]], int]
"""The target's next token behind a row, given the tokens of the path that leads to it (the root's not among them)."""


def is_tree(parents: np.ndarray) -> bool:
    """Whether every node's parent precedes it. parents [nodes]: 0 for the root, else the parent's row."""
    return bool((parents >= 0).all() and (parents < np.arange(1, len(parents) + 1)).all())


def tree_mask(parents: Sequence[int], rows: int) -> tuple[np.ndarray, list[int]]:
    """Who sees whom, and how deep: a row sees itself and its ancestors.

    Args:
        parents: [nodes], the row of each node's parent
        rows: more than nodes; rows after the tree's are padding and see themselves

    Returns:
        mask: [rows, rows] bool, read only
        depths: [rows]: 0 for the root and for padding
    """
    seen, depths = [bytearray(rows)], [0] * rows
    seen[0][0] = 1
    for row in range(1, rows):
        if row <= len(parents):
            seen.append(seen[parents[row - 1]][:])
            depths[row] = depths[parents[row - 1]] + 1
        else:
            seen.append(bytearray(rows))
        seen[row][row] = 1
    return np.frombuffer(b"".join(seen), bool).reshape(rows, rows), depths


def accept(tokens: Sequence[int], parents: Sequence[int], choose: Choose) -> tuple[list[int], list[int]]:
    """Follow the target's choices down the tree for as long as they are in it.

    This is exact for any target distribution: the tree is a set of tokens and takes no part in the draw.

    Args:
        tokens, parents: [nodes]
        choose: the target's next token behind a row; asked for visited rows only, in order

    Returns:
        rows: the accepted rows, the root's first, [1 + accepted]
        chosen: the target's choice behind each of them, [1 + accepted]; all but the last are the accepted nodes' tokens
    """
    rows, chosen = [0], [choose(0, [])]
    for row, step in enumerate(zip(parents, tokens, strict=True), 1):  # children come behind their parents: one pass
        if step == (rows[-1], chosen[-1]):
            rows.append(row)
            chosen.append(choose(row, chosen))
    return rows, chosen


def merge_chain(
    tokens: list[int], parents: list[int], chances: list[float], chain: Sequence[int], likely: Sequence[float]
) -> None:
    """Put a chain of tokens behind the root into a tree: tokens that the tree has there are its nodes, others come last.

    A node of both has the larger chance, so that a child's chance is never above its parent's where neither has such.

    Args:
        tokens, parents, chances: of the tree, [nodes] each; changed
        chain, likely: tokens, and their chances
    """
    rows, above = dict(zip(zip(parents, tokens, strict=True), range(1, len(tokens) + 1), strict=True)), 0
    for token, chance in zip(chain, likely, strict=True):
        row = rows.get((above, token))
        if row is None:
            tokens.append(token)
            parents.append(above)
            chances.append(chance)
            row = len(tokens)
        elif chance > chances[row - 1]:
            chances[row - 1] = chance
        above = row


def top_nodes(ranks: Sequence[float], parents: Sequence[int], count: int) -> list[int]:
    """The `count` best nodes of a tree, in their order, closed under parents.

    A child's rank is never above its parent's, so the best nodes hold their own ancestors; equal ranks go to the lower number.

    Args:
        ranks: what nodes are compared by, the larger the better, [nodes]
        parents: [nodes]

    Returns:
        node numbers from 0, ascending, [min(count, nodes)]
    """
    kept = sorted(sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)[:count])
    rows = {0}
    for node in kept:
        if parents[node] in rows:
            rows.add(node + 1)
    return kept if len(rows) > len(kept) else [node for node in kept if node + 1 in rows]


def subtree(tokens: Sequence[int], parents: Sequence[int], kept: Sequence[int]) -> tuple[list[int], list[int]]:
    """The tree of some nodes, renumbered: tokens and parents [kept]. `kept` is ascending and closed under parents."""
    row = {0: 0}
    for place, node in enumerate(kept, 1):
        row[node + 1] = place
    return [tokens[node] for node in kept], [row[parents[node]] for node in kept]
