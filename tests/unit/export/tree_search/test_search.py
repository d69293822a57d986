"""The search: it takes what is the fastest by its own figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jakiro_export.heads.config import TreeShape
from jakiro_export.heads.model import DraftTree
from jakiro_export.heads.trees import DynamicBeam, StaticPaths
from jakiro_export.tree_search import search, static
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
        nodes = [list(range(length)) for length in lengths]
        return DraftTrace(scores, nodes)

    monkeypatch.setattr(search, "trace", deep)

    def nothing_drafts(tree: DraftTree) -> DraftCall:
        return DraftCall(None, None, tree.shape.depth + 1)  # type: ignore[arg-type]

    found = search.Search([None], nothing_drafts, constraints, DynamicBeam(TreeShape()), 8)  # type: ignore[list-item]
    found.plan = row_plan(row_ms)
    for (depth, top_k), cost in measured.items():
        found.note(DynamicBeam(TreeShape(depth, top_k, 3)), cost)
    return found.smallest(found.ranking()[0].tree).shape


def test_the_search_takes_deep_trees_where_drafting_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    free = TreeConstraints(None, None, None)
    assert searched(monkeypatch, 0.01, {(2, 4): 0.001}, free).depth == 6
    assert searched(monkeypatch, 0.01, {(2, 4): 4.0}, free).depth <= 2
    cheap_rows, dear_rows = (searched(monkeypatch, ms, {(2, 4): 0.05}, free).nodes for ms in (0.01, 3.0))
    assert cheap_rows > dear_rows
    assert searched(monkeypatch, 0.01, {(2, 4): 0.001}, TreeConstraints(3, 2, 4)) == TreeShape(3, 2, 4)


def test_the_wide_tree_is_a_tree_and_its_best_nodes_are_one() -> None:
    tree = static.wide(6)
    assert len(set(tree.paths)) == len(tree.paths)
    assert all(path[:-1] in tree.paths for path in tree.paths if len(path) > 1)
    assert max(path[-1] for path in static.wide(2).paths) == 1
    place = {path: n for n, path in enumerate(tree.paths)}
    accepted = [[place[0,], place[0, 0]], [place[1,]], [place[0,], place[0, 0], place[0, 0, 0]], [], [place[1,], place[1, 0]]]
    traces = [DraftTrace(np.zeros((5, 1)), accepted)]

    def paths_of(nodes: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tree.paths[n] for n in static.best(tree, traces, nodes))

    assert paths_of(3) == ((0,), (1,), (0, 0))
    assert paths_of(5) == ((0,), (1,), (0, 0), (1, 0), (0, 0, 0))
    accepted = [[place[2,]], [place[2,]], [place[2,]], [place[1,]]]  # by chance
    assert static.best(tree, [DraftTrace(np.zeros((4, 1)), accepted)], 1) == [place[0,]]


def test_fixed_paths_are_taken_where_choosing_is_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft phase of one row a level costs least; where rows are free, the beam's better choice wins."""

    def traced(draft: DraftCall, text: object) -> DraftTrace:
        tree: Any = draft.call
        chain = [(0,), (0, 0), (0, 0, 0)]
        numbers = [tree.paths.index(path) for path in chain] if isinstance(tree, StaticPaths) else [0, 1, 2]
        nodes = [numbers[: draft.levels]] * 100
        return DraftTrace(np.broadcast_to(-0.1 * np.arange(1, 97), (100, 96)), nodes)

    monkeypatch.setattr(search, "trace", traced)
    call = lambda tree: DraftCall(tree, None, tree.shape.depth + 1)  # noqa: E731
    rates = {}
    for row_ms in (0.01, 5.0):
        found = search.Search([None], call, TreeConstraints(None, None, None), DynamicBeam(TreeShape()), 8)  # type: ignore
        found.plan = row_plan(row_ms)
        for depth, top_k in ((1, 2), (3, 4)):
            tree = DynamicBeam(TreeShape(depth, top_k, 3))
            found.note(tree, found._work(tree) / found.plan.milliseconds(2, found.plan.capacities[0]))
        fixed = found.best_static()
        assert fixed is not None
        rates[row_ms] = fixed.outcome.rate / found.ranking()[0].outcome.rate
    assert rates[5.0] > rates[0.01]
    found.constraints = TreeConstraints(3, None, None)
    assert found.best_static() is None  # a depth was asked for


def test_a_tree_whose_rate_is_not_reached_again_keeps_all_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with a trained EAGLE head: the rate of the choice was a little above that of every number of nodes."""
    free = TreeConstraints(None, None, None)
    monkeypatch.setattr(search, "_ENOUGH", 1.01)
    assert searched(monkeypatch, 0.01, {(2, 4): 0.001}, free).nodes > 1
