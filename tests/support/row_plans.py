"""A plan with simple costs for the rows that the tree search times."""

from __future__ import annotations

from jakiro_export.tree_search.shapes import ROWS
from jakiro_runtime.format.tree_plan import TreePlan


def row_plan(row_ms: float = 0.5, draft_ms: float = 2.0) -> TreePlan:
    """A target that costs 10 ms and `row_ms` a row."""
    costs = [10 + row_ms * rows for rows in ROWS]
    return TreePlan(list(ROWS), {"256": costs}, draft_ms, [-8.0, 0.0], [0.0, 1.0], {"tokens_per_second": 100.0})
