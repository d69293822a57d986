"""Decoding of the calibration texts again, on paper: the trees are known everywhere, and so is what each pass costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jakiro_export.tree_search.trees import Grown
from jakiro_runtime.decoding.node_budget import NodeBudget
from jakiro_runtime.format.tree_plan import TreePlan

# Where chances are read off: cumulative log-probabilities, and nothing far below what could ever be worth a row
_LOG_PROBS = np.array([-8.0, -6.0, -5.0, -4.0, -3.2, -2.6, -2.1, -1.7, -1.35, -1.05, -0.8, -0.58, -0.4, -0.25, -0.13, -0.03])


@dataclass
class Outcome:
    """What decoding came to, in total; milliseconds."""

    rounds: int = 0
    tokens: int = 0
    nodes: int = 0
    time: float = 0.0

    @property
    def tau(self) -> float:
        return self.tokens / max(1, self.rounds)

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return 1e3 * self.tokens / self.time if self.time else 0.0


def fixed(grown: Sequence[Grown], plan: TreePlan, nodes: int, visited: list[tuple[int, int]] | None = None) -> Outcome:
    """Every round drafts and verifies the best `nodes` nodes; `visited` collects where rounds began, (text, place)."""
    done, capacity = Outcome(), plan.capacities[0]
    cost = plan.host_ms + plan.draft_ms + plan.milliseconds(max(2, nodes + 1), capacity)
    for number, text in enumerate(grown):
        place = 0
        while place < len(text.ranks):
            if visited is not None:
                visited.append((number, place))
            taken = sum(rank < nodes for rank in text.ranks[place])
            place += taken + 1
            done = Outcome(done.rounds + 1, done.tokens + taken + 1, done.nodes + nodes, done.time + cost)
    return done


def chosen(grown: Sequence[Grown], plan: TreePlan, nodes: int) -> Outcome:
    """Every round as the runtime runs it: it drafts up to `nodes` nodes where that is worth it, and verifies what is."""
    done, capacity = Outcome(), plan.capacities[0]
    choice = NodeBudget(plan, nodes, nodes)
    cost = {count: plan.host_ms + plan.milliseconds(max(2, count + 1), capacity) for count in choice.counts}
    for text in grown:
        place = 0
        choice.start()
        while place < len(text.ranks):
            count = taken = 0
            if drafting := choice.should_draft():
                count = choice.count(choice.acceptance_probs(text.scores[place, :nodes]), capacity)
                taken = sum(rank < count for rank in text.ranks[place])
                choice.observe_acceptance(count, taken, capacity)
            place += taken + 1
            time = cost[count] + plan.draft_ms * drafting
            done = Outcome(done.rounds + 1, done.tokens + taken + 1, done.nodes + count, done.time + time)
    return done


def settled(grown: Sequence[Grown], plan: TreePlan, nodes: int, rounds: int = 6) -> tuple[TreePlan, Outcome]:
    """The plan with the rate that decoding by it comes to, which is the choice's own input (Dinkelbach), and that decoding."""
    best = plan, chosen(grown, plan, nodes)
    for _ in range(rounds):
        plan = with_rate(plan, best[1].rate)
        outcome = chosen(grown, plan, nodes)
        if outcome.rate <= best[1].rate:
            break
        best = plan, outcome
    return with_rate(best[0], best[1].rate), best[1]


def with_rate(plan: TreePlan, rate: float) -> TreePlan:
    """The plan, expecting so many tokens per second."""
    return replace(plan, expected={**plan.expected, "tokens_per_second": rate})


def calibrated(grown: Sequence[Grown], plan: TreePlan, nodes: int) -> TreePlan:
    """The plan with the chances of nodes by their scores, counted where rounds of `nodes` nodes begin."""
    visited: list[tuple[int, int]] = []
    fixed(grown, plan, nodes, visited)
    scores = np.concatenate([grown[text].scores[place] for text, place in visited])
    hits = np.concatenate([_hits(grown[text], place) for text, place in visited])
    return replace(plan, log_probs=_LOG_PROBS.tolist(), acceptance=chances(scores, hits).tolist())


def _hits(text: Grown, place: int) -> np.ndarray:
    found = np.zeros(text.scores.shape[1])
    found[text.ranks[place]] = 1
    return found


def chances(scores: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """How often nodes of a score are accepted, never falling with the score, at `_LOG_PROBS`.

    Args:
        scores, hits: of many nodes, flat; hits are 0 or 1

    Where there are few nodes, the head's own probability counts for as much as two of them.
    """
    edges = (_LOG_PROBS[1:] + _LOG_PROBS[:-1]) / 2
    bins = np.digitize(scores, edges)
    total = np.bincount(bins, minlength=len(_LOG_PROBS)) + 2.0
    taken = np.bincount(bins, hits, minlength=len(_LOG_PROBS)) + 2.0 * np.exp(_LOG_PROBS)
    return monotone(taken / total, total).round(5)


def monotone(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest sequence that never falls, by weighted squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return np.concatenate([np.full(count, value) for value, _, count in blocks])
