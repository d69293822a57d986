"""The search: it takes what is the fastest by its own figures."""

from __future__ import annotations

import numpy as np
import pytest

from jakiro_export.heads.config import TreeShape
from jakiro_export.tree_search import search
from jakiro_export.tree_search.shapes import TreeConstraints
from jakiro_export.tree_search.traces import DraftCall, DraftTrace
from row_plans import row_plan


def searched(
    monkeypatch: pytest.MonkeyPatch, row_ms: float, measured: dict[tuple[int, int], float], constraints: TreeConstraints
) -> TreeShape:
    """The shape that a search prefers where every level of depth adds a node that is mostly accepted."""

    def deep(draft: DraftCall, text: object) -> DraftTrace:
        random = np.random.default_rng(3)
        lengths = np.minimum((random.random((300, 12)) < 0.9).cumprod(1).sum(1), draft.levels)
        scores = np.broadcast_to(np.log(0.9) * np.arange(1, 32), (300, 31))
        return DraftTrace(scores, [list(range(length)) for length in lengths])

    monkeypatch.setattr(search, "trace", deep)

    def nothing_drafts(shape: TreeShape) -> DraftCall:
        return DraftCall(None, None, shape.depth + 1)  # type: ignore[arg-type]

    found = search.Search([None], nothing_drafts, constraints, TreeShape(), 8)  # type: ignore[list-item]
    found.plan = row_plan(row_ms)
    found.draft_costs.update(measured)
    return found.smallest(found.ranking()[0].shape)


def test_the_search_takes_deep_trees_where_drafting_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    free = TreeConstraints(None, None, None)
    assert searched(monkeypatch, 0.01, {(2, 4): 0.001}, free).depth == 6
    assert searched(monkeypatch, 0.01, {(2, 4): 4.0}, free).depth <= 2
    cheap_rows, dear_rows = (searched(monkeypatch, ms, {(2, 4): 0.05}, free).nodes for ms in (0.01, 3.0))
    assert cheap_rows > dear_rows
    assert searched(monkeypatch, 0.01, {(2, 4): 0.001}, TreeConstraints(3, 2, 4)) == TreeShape(3, 2, 4)
