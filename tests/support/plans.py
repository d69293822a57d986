"""A plan as `jakiro-export --tree auto` writes it, with costs and chances that are easy to reckon with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jakiro_runtime.format.tree_plan import TreePlan


def make_plan(**changes: object) -> TreePlan:
    """A target that costs 10 ms and 0.5 ms a row more, 20 and 1 behind 1024 slots; chances a tenth below the head's own."""
    rows = [2, 3, 4, 6, 8, 12, 16]
    log_probs = np.linspace(-8, 0, 33)
    plan = TreePlan(
        rows=rows,
        target_ms={"256": [10 + 0.5 * count for count in rows], "1024": [20 + count for count in rows]},
        draft_ms=2.0,
        log_probs=log_probs.tolist(),
        acceptance=(0.9 * np.exp(log_probs)).tolist(),
        shape={"depth": 3, "top_k": 4, "nodes": 12},
        expected={"tau": 2.0, "tokens_per_second": 150.0, "plain_tokens_per_second": 90.0, "speedup": 1.67},
    )
    return replace(plan, **changes)  # type: ignore[arg-type]
