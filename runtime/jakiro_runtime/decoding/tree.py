"""Draft trees as lists, and the integer bookkeeping of a round. Pure functions; no model in sight.

Rows of a verification call are the root, row 0, and the tree's nodes, node i in row i + 1. A parent's row precedes its
children's. Trees have a few dozen nodes at most, for which plain lists are quicker than arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

NextToken = Callable[[int, list[int]], int]
"""The target's next token after a row, given the tokens on the path from the root to it (without the root's)."""


class DraftTree(NamedTuple):
    """What a round verifies under the root; tokens and parents [nodes].

    parents: the row of each node's parent
    from_head: how many of the nodes the head drafted; they come first, the others are n-grams
    """

    tokens: list[int]
    parents: list[int]
    from_head: int = 0


class AcceptedPath(NamedTuple):
    """Where the target went in a tree.

    rows: the accepted rows, the root's first, [1 + accepted]
    tokens: the target's token after each of them, [1 + accepted]; all but the last are the accepted nodes' tokens
    """

    rows: list[int]
    tokens: list[int]


def accept(tree: DraftTree, next_token: NextToken) -> AcceptedPath:
    """Follow the target's own tokens down the tree for as long as the tree has them.

    This is exact for any target distribution: x ~ target(. | path) is drawn first and the tree is looked at afterwards, so the
    tree decides only how many tokens one pass yields.

    Args:
        next_token: asked for visited rows only, in order
    """
    rows, tokens = [0], [next_token(0, [])]
    for row, step in enumerate(zip(tree.parents, tree.tokens, strict=True), 1):  # children come after their parents: one pass
        if step == (rows[-1], tokens[-1]):
            rows.append(row)
            tokens.append(next_token(row, tokens))
    return AcceptedPath(rows, tokens)


def is_tree(parents: np.ndarray) -> bool:
    """Whether every node's parent precedes it. parents [nodes]: 0 for the root, else the parent's row."""
    return bool((parents >= 0).all() and (parents < np.arange(1, len(parents) + 1)).all())


def tree_mask(parents: Sequence[int], rows: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Who sees whom, and how deep: a row sees itself and its ancestors.

    Args:
        parents: [nodes], the row of each node's parent
        rows: more than nodes; rows after the tree's are padding and see themselves

    Returns:
        mask: [rows, rows] bool, read only
        depths: [rows]: 0 for the root and for padding
    """
    return _tree_mask(tuple(parents), rows)


@lru_cache(256)  # small trees and chains come again and again
def _tree_mask(parents: tuple[int, ...], rows: int) -> tuple[np.ndarray, tuple[int, ...]]:
    visible, depths = [bytearray(rows)], [0] * rows
    visible[0][0] = 1
    for row in range(1, rows):
        if row <= len(parents):
            visible.append(visible[parents[row - 1]][:])
            depths[row] = depths[parents[row - 1]] + 1
        else:
            visible.append(bytearray(rows))
        visible[row][row] = 1
    return np.frombuffer(b"".join(visible), bool).reshape(rows, rows), tuple(depths)


def merge_chain(
    tokens: list[int], parents: list[int], probs: list[float], chain: Sequence[int], chain_probs: Sequence[float]
) -> None:
    """Add a chain of tokens under the root to a tree: tokens that the tree has there are its nodes, the others come last.

    A node of both takes the larger probability, so that a child's is never above its parent's where neither had such.

    Args:
        tokens, parents, probs: of the tree, [nodes] each; changed in place. probs: of being accepted
        chain, chain_probs: tokens, and their probabilities of being accepted
    """
    rows, above = dict(zip(zip(parents, tokens, strict=True), range(1, len(tokens) + 1), strict=True)), 0
    for token, prob in zip(chain, chain_probs, strict=True):
        row = rows.get((above, token))
        if row is None:
            tokens.append(token)
            parents.append(above)
            probs.append(prob)
            row = len(tokens)
        elif prob > probs[row - 1]:
            probs[row - 1] = prob
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
