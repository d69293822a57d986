"""Search for a draft tree: depth and top_k of a beam, whose number of nodes follows from them, and fixed paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jakiro_export.heads.model import DraftTree
from jakiro_export.heads.trees import StaticPaths
from jakiro_export.tree_search import simulate, static
from jakiro_export.tree_search.costs import reference_ms
from jakiro_export.tree_search.shapes import TreeConstraints, node_counts, widest
from jakiro_export.tree_search.texts import Text
from jakiro_export.tree_search.traces import DraftCall, DraftTrace, trace
from jakiro_runtime.format.tree_plan import TreePlan

_ENOUGH = 0.995  # of the best rate: the smallest tree that reaches it is taken


@dataclass(frozen=True)
class Candidate:
    """A tree and what it is expected to come to."""

    tree: DraftTree
    plan: TreePlan
    outcome: simulate.Outcome

    def as_dict(self) -> dict[str, Any]:
        return {
            **shape_of(self.tree),
            "draft_ms": round(self.plan.draft_ms, 3),
            "tau": round(self.outcome.tau, 4),
            "tokens_per_second": round(self.outcome.rate, 2),
        }


def shape_of(tree: DraftTree) -> dict[str, int]:
    """The shape of a tree as a `TreePlan` has it."""
    found = {name: getattr(tree.shape, name) for name in ("depth", "top_k", "nodes")}
    return {**found, "static": 1} if isinstance(tree, StaticPaths) else found


def fixed_paths(tree: DraftTree) -> tuple[tuple[int, ...], ...] | None:
    """The paths of a tree whose nodes are fixed; None for one that chooses them."""
    return tree.paths if isinstance(tree, StaticPaths) else None


def _key(tree: DraftTree) -> tuple[Any, ...]:
    """What trees have in common of which one draft phase costs as much as the other: a beam's nodes are chosen at its end."""
    return fixed_paths(tree) or (tree.shape.depth, tree.shape.top_k)


class Search:
    """Coordinate search: along depth, then along top_k, then to neighbouring depths, until nothing is better.

    Args:
        texts: to draft along
        eager: the draft phase with a tree, in torch
        like: a tree with everything that is not searched
        max_top_k: the number of tokens that the head may propose

    plan: of `target_costs`, with `host_ms`; set before searching, and again to search by another measurement
    """

    def __init__(
        self,
        texts: Sequence[Text],
        eager: Callable[[DraftTree], DraftCall],
        constraints: TreeConstraints,
        like: DraftTree,
        max_top_k: int,
    ) -> None:
        self.texts, self.constraints = texts, constraints
        self.plan = TreePlan([], {}, 0.0, [], [], {})
        self._measured: dict[tuple[Any, ...], tuple[DraftTree, float]] = {}
        self._eager, self._like, self._max_top_k = eager, like, max_top_k
        self._depths, self._top_ks = constraints.depths(), constraints.top_ks(max_top_k)
        self._traces: dict[tuple[Any, ...], list[DraftTrace]] = {}

    def note(self, tree: DraftTree, draft_cost: float) -> None:
        """Know what a tree's draft phase takes, in reference passes."""
        self._measured[_key(tree)] = tree, draft_cost

    def knows(self, tree: DraftTree) -> bool:
        """Whether that was measured."""
        return _key(tree) in self._measured

    def ranking(self) -> list[Candidate]:
        """The shapes that were considered, by what is known so far, best first."""
        found: dict[tuple[int, int], Candidate] = {}

        def best_along(line: Sequence[tuple[int, int]]) -> tuple[int, int]:
            """Evaluate a line of shapes, in order, until the rate falls twice; the best shape so far."""
            rates: list[float] = []
            for place in line:
                if place not in found:
                    found[place] = self.evaluate(self._beam(*place))
                rates.append(found[place].outcome.rate)
                if len(rates) > 2 and rates[-1] < rates[-2] < rates[-3]:
                    break
            shape = max(found.values(), key=lambda each: each.outcome.rate).tree.shape
            return shape.depth, shape.top_k

        place = best_along([(depth, self._top_ks[len(self._top_ks) // 2]) for depth in self._depths])
        while True:
            before = place
            place = best_along([(place[0], top_k) for top_k in self._top_ks])
            place = best_along([(depth, place[1]) for depth in self._depths if abs(depth - place[0]) <= 1])
            if place == before:
                return sorted(found.values(), key=lambda each: -each.outcome.rate)

    def best_static(self) -> Candidate | None:
        """The best tree along fixed paths, by what is known so far; None where the user asked for a shape."""
        if not self.constraints.shapeless:
            return None
        wide = static.wide(self._max_top_k)
        sizes = static.SIZES if self.constraints.nodes is None else (self.constraints.nodes,)
        traces, found = self._traced(wide), []
        for nodes in (size for size in sizes if size <= len(wide.paths)):
            numbers = static.best(wide, traces, nodes)
            tree = StaticPaths([wide.paths[n] for n in numbers])
            self._traces[_key(tree)] = [each.only(numbers) for each in traces]  # nothing is drafted again
            found.append(self.evaluate(tree))
        return max(found, key=lambda each: each.outcome.rate, default=None)

    def best_measured(self) -> Candidate:
        """The best of the trees whose draft phase was timed."""
        return max((self.evaluate(tree) for tree, _ in self._measured.values()), key=lambda each: each.outcome.rate)

    def _beam(self, depth: int, top_k: int) -> DraftTree:
        return self._like.reshaped(widest(depth, top_k, self.constraints, self._like.shape))

    def _traced(self, tree: DraftTree) -> list[DraftTrace]:
        """The trees of all texts, drafted once."""
        if _key(tree) not in self._traces:
            draft = self._eager(tree)
            self._traces[_key(tree)] = [trace(draft, text) for text in self.texts]
        return self._traces[_key(tree)]

    def evaluate(self, tree: DraftTree) -> Candidate:
        """What a tree is expected to come to, by what is known so far."""
        if not isinstance(tree, StaticPaths):
            tree = self._beam(tree.shape.depth, tree.shape.top_k)
        return self.candidate(tree, self._traced(tree), self._draft_cost(tree))

    def candidate(self, tree: DraftTree, traces: Sequence[DraftTrace], draft_cost: float) -> Candidate:
        """What a tree is expected to come to, from its traces and its draft phase in reference passes."""
        plan = replace(self.plan, draft_ms=round(draft_cost * reference_ms(self.plan), 3))
        fixed = {nodes: simulate.decode_fixed(traces, plan, nodes) for nodes in node_counts(tree.shape)}
        likely = max(fixed, key=lambda nodes: fixed[nodes].rate)
        plan = simulate.with_acceptance(traces, simulate.with_rate(plan, fixed[likely].rate), likely)
        return Candidate(tree, *simulate.fixed_point(traces, plan, tree.shape.nodes))

    def smallest(self, tree: DraftTree) -> DraftTree:
        """The tree with no more nodes than help, where the user did not say how many."""
        found = self.evaluate(tree)
        if self.constraints.nodes is not None or isinstance(tree, StaticPaths):
            return found.tree
        shape, traces = found.tree.shape, self._traced(found.tree)
        rates = ((nodes, simulate.decode_adaptive(traces, found.plan, nodes).rate) for nodes in node_counts(shape))
        # the plan's own rate moved last, so that a round may now come to a little less than when the tree was chosen
        enough = next((nodes for nodes, rate in rates if rate >= _ENOUGH * found.outcome.rate), shape.nodes)
        return self._like.reshaped(replace(shape, nodes=enough))

    def _draft_cost(self, tree: DraftTree) -> float:
        """A draft phase in reference passes: measured, or fitted to those that were by the rows that it passes how often."""
        if self.knows(tree):
            return self._measured[_key(tree)][1]
        points = [(self._work(other), cost) for other, cost in self._measured.values()]
        work, costs = np.array(points).T
        if len(set(work)) > 1:
            slope, base = np.polyfit(work, costs, 1)
            if slope > 0 and base > 0:
                return float(base + slope * self._work(tree))
        return float((costs / work).mean() * self._work(tree))

    def _work(self, tree: DraftTree) -> float:
        """Target passes over the rows of a draft phase, in milliseconds."""
        return sum(self.plan.milliseconds(max(2, rows), self.plan.capacities[0]) for rows in tree.passes)
