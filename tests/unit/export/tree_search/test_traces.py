"""Draft traces: what a draft phase proposes along a text, and what the target would accept of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tiny
from jakiro_export.heads.config import TreeShape
from jakiro_export.tree_search.texts import Text
from jakiro_export.tree_search.traces import accepted_path, engine_draft, torch_draft, trace
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


def test_a_path_is_followed_as_far_as_the_target_goes() -> None:
    tokens, parents = np.array([5, 6, 7, 8]), np.array([0, 0, 1, 3])
    assert accepted_path(tokens, parents, np.array([5, 7, 8, 9])) == [0, 2, 3]
    assert accepted_path(tokens, parents, np.array([6, 7])) == [1]
    assert accepted_path(tokens, parents, np.array([9])) == []
