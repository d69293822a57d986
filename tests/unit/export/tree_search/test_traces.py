"""Draft traces: what a draft phase proposes along a text, and what the target would accept of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import tiny
from jakiro_export.heads.config import TreeShape
from jakiro_export.heads.trees import StaticPaths
from jakiro_export.tree_search.texts import Text
from jakiro_export.tree_search.traces import DraftTrace, accepted_path, engine_draft, torch_draft, trace
from jakiro_export.verification.draft import load_draft
from jakiro_runtime import Engine, contract


def test_torch_and_the_engine_draft_the_same_trees(
    engine: Engine, calibration: list[Text], tiny_target: Path, tiny_head: Path
) -> None:
    module = load_draft(tiny.draft_plan(tiny_target, tiny_head, TreeShape(3, 4, 12)))
    ours, theirs = (
        trace(torch_draft(module, contract.draft(2, 8, 48, 12), 4), calibration[0]),
        trace(engine_draft(engine), calibration[0]),
    )
    assert np.abs(ours.scores - theirs.scores).max() < 1e-3
    assert ours.ranks == theirs.ranks


def test_a_part_of_fixed_paths_is_traced_with_the_whole(calibration: list[Text], tiny_target: Path, tiny_head: Path) -> None:
    """What a tree of fixed paths drafts for a node does not depend on the nodes beside it."""
    plan = tiny.draft_plan(tiny_target, tiny_head, TreeShape(3, 4, 12))

    def traced(paths: Sequence[tuple[int, ...]]) -> DraftTrace:
        tree = StaticPaths(paths)
        given = contract.draft(2, 8, 48, len(paths))
        return trace(torch_draft(load_draft(replace(plan, tree=tree)), given, tree.shape.depth + 1), calibration[0])

    wide = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]
    numbers = [0, 1, 3, 6]
    ours, alone = traced(wide).only(numbers), traced([wide[n] for n in numbers])
    np.testing.assert_allclose(ours.tree_scores, alone.tree_scores, atol=1e-4)
    assert ours.accepted == alone.accepted
    assert ours.ranks == alone.ranks


def test_a_path_is_followed_as_far_as_the_target_goes() -> None:
    tokens, parents = np.array([5, 6, 7, 8]), np.array([0, 0, 1, 3])
    assert accepted_path(tokens, parents, np.array([5, 7, 8, 9])) == [0, 2, 3]
    assert accepted_path(tokens, parents, np.array([6, 7])) == [1]
    assert accepted_path(tokens, parents, np.array([9])) == []
