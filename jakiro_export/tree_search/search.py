"""Coordinate search over the depth and top_k of a draft tree; the number of nodes follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jakiro_export.heads.config import TreeShape
from jakiro_export.tree_search import simulate
from jakiro_export.tree_search.costs import reference_ms
from jakiro_export.tree_search.shapes import TreeConstraints, node_counts, widest
from jakiro_export.tree_search.texts import Text
from jakiro_export.tree_search.traces import DraftCall, DraftTrace, trace
from jakiro_runtime.format.tree_plan import TreePlan

_ENOUGH = 0.995  # of the best rate: the smallest tree that reaches it is taken


@dataclass(frozen=True)
class Candidate:
    """A shape and what it is expected to come to."""

    shape: TreeShape
    plan: TreePlan
    outcome: simulate.Outcome

    def as_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self.shape, name) for name in ("depth", "top_k", "nodes")},
            "draft_ms": round(self.plan.draft_ms, 3),
            "tau": round(self.outcome.tau, 4),
            "tokens_per_second": round(self.outcome.rate, 2),
        }


class Search:
    """Coordinate search: along depth, then along top_k, then to neighbouring depths, until nothing is better.

    Args:
        texts: to draft along
        eager: the draft phase of a shape, in torch
        like: a shape with everything that is not searched
        max_top_k: the number of tokens that the head may propose

    plan: of `target_costs`, with `host_ms`; set before searching, and again to search by another measurement
    draft_costs: measured draft phases, in reference passes, by depth and top_k
    """

    def __init__(
        self,
        texts: Sequence[Text],
        eager: Callable[[TreeShape], DraftCall],
        constraints: TreeConstraints,
        like: TreeShape,
        max_top_k: int,
    ) -> None:
        self.texts, self.constraints = texts, constraints
        self.plan = TreePlan([], {}, 0.0, [], [], {})
        self.draft_costs: dict[tuple[int, int], float] = {}
        self._eager, self._like = eager, like
        self._depths, self._top_ks = constraints.depths(), constraints.top_ks(max_top_k)
        self._traces: dict[tuple[int, int], list[DraftTrace]] = {}

    def ranking(self) -> list[Candidate]:
        """The shapes that were considered, by what is known so far, best first."""
        found: dict[tuple[int, int], Candidate] = {}

        def best_along(line: Sequence[tuple[int, int]]) -> tuple[int, int]:
            """Evaluate a line of shapes, in order, until the rate falls twice; the best shape so far."""
            rates: list[float] = []
            for place in line:
                if place not in found:
                    found[place] = self._evaluate(*place)
                rates.append(found[place].outcome.rate)
                if len(rates) > 2 and rates[-1] < rates[-2] < rates[-3]:
                    break
            shape = max(found.values(), key=lambda each: each.outcome.rate).shape
            return shape.depth, shape.top_k

        place = best_along([(depth, self._top_ks[len(self._top_ks) // 2]) for depth in self._depths])
        while True:
            before = place
            place = best_along([(place[0], top_k) for top_k in self._top_ks])
            place = best_along([(depth, place[1]) for depth in self._depths if abs(depth - place[0]) <= 1])
            if place == before:
                return sorted(found.values(), key=lambda each: -each.outcome.rate)

    def best_measured(self) -> Candidate:
        """The best of the shapes whose draft phase was timed."""
        return max((self._evaluate(*place) for place in self.draft_costs), key=lambda each: each.outcome.rate)

    def _evaluate(self, depth: int, top_k: int) -> Candidate:
        shape = widest(depth, top_k, self.constraints, self._like)
        if (depth, top_k) not in self._traces:
            draft = self._eager(shape)
            self._traces[depth, top_k] = [trace(draft, text) for text in self.texts]
        return self.candidate(shape, self._traces[depth, top_k], self._draft_cost(depth, top_k))

    def candidate(self, shape: TreeShape, traces: Sequence[DraftTrace], draft_cost: float) -> Candidate:
        """What a shape is expected to come to, from its traces and its draft phase in reference passes."""
        plan = replace(self.plan, draft_ms=round(draft_cost * reference_ms(self.plan), 3))
        fixed = {nodes: simulate.decode_fixed(traces, plan, nodes) for nodes in node_counts(shape)}
        likely = max(fixed, key=lambda nodes: fixed[nodes].rate)
        plan = simulate.with_acceptance(traces, simulate.with_rate(plan, fixed[likely].rate), likely)
        return Candidate(shape, *simulate.fixed_point(traces, plan, shape.nodes))

    def smallest(self, shape: TreeShape) -> TreeShape:
        """The shape with no more nodes than help, where the user did not say how many."""
        found = self._evaluate(shape.depth, shape.top_k)
        if self.constraints.nodes is not None:
            return found.shape
        traces = self._traces[shape.depth, shape.top_k]
        rates = ((nodes, simulate.decode_adaptive(traces, found.plan, nodes).rate) for nodes in node_counts(found.shape))
        return replace(shape, nodes=next(nodes for nodes, rate in rates if rate >= _ENOUGH * found.outcome.rate))

    def _draft_cost(self, depth: int, top_k: int) -> float:
        """A draft phase in reference passes: measured, or fitted to those that were by the rows that it passes how often."""
        if (depth, top_k) in self.draft_costs:
            return self.draft_costs[depth, top_k]
        points = [(self._work(*place), cost) for place, cost in self.draft_costs.items()]
        work, costs = np.array(points).T
        if len(set(work)) > 1:
            slope, base = np.polyfit(work, costs, 1)
            if slope > 0 and base > 0:
                return float(base + slope * self._work(depth, top_k))
        return float((costs / work).mean() * self._work(depth, top_k))

    def _work(self, depth: int, top_k: int) -> float:
        """Target passes over the rows of a draft phase, in milliseconds: one row, then top_k rows depth - 1 times."""
        rows, capacity = max(2, top_k), self.plan.capacities[0]
        return reference_ms(self.plan) + (depth - 1) * self.plan.milliseconds(rows, capacity)
