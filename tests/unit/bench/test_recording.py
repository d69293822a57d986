"""Accepted nodes by rank."""

from __future__ import annotations

import numpy as np

from jakiro_bench.recording import DraftedTree, RankCounts


def test_a_taken_child_is_counted_at_its_rank() -> None:
    tree = DraftedTree(np.array([5, 6, 7, 8]), np.array([0, 0, 1, 2]), np.array([-2.0, -1.0, -3.0, -1.5]))
    ranks = RankCounts()
    ranks.count(tree, [5, 7, 9])  # the root's second child, then its only child, then a leaf
    ranks.count(tree, [4])
    assert (ranks.offered, ranks.taken) == ([3, 2], [1, 1])
    assert ranks.taken_in_tree == [0, 0, 1, 1]
    assert ranks.as_dict()["by_sibling_rank"] == [0.3333, 0.5]
