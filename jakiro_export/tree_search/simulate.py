"""Offline decoding of the calibration texts, round by round: from their draft traces and the measured costs of each pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jakiro_export.tree_search.traces import DraftTrace
from jakiro_runtime.decoding.node_budget import NodeBudget
from jakiro_runtime.format.tree_plan import TreePlan

# Cumulative log-probabilities at which acceptance is tabulated; nothing far below what could ever be worth a row
_LOG_PROBS = np.array([-8.0, -6.0, -5.0, -4.0, -3.2, -2.6, -2.1, -1.7, -1.35, -1.05, -0.8, -0.58, -0.4, -0.25, -0.13, -0.03])


@dataclass
class Outcome:
    """Totals of decoding; time in milliseconds."""

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


def decode_fixed(
    traces: Sequence[DraftTrace], plan: TreePlan, nodes: int, visited: list[tuple[int, int]] | None = None
) -> Outcome:
    """Every round drafts and verifies the best `nodes` nodes; `visited` collects where rounds began, (text, position)."""
    done, capacity = Outcome(), plan.capacities[0]
    cost = plan.host_ms + plan.draft_ms + plan.milliseconds(max(2, nodes + 1), capacity)
    for number, trace in enumerate(traces):
        position = 0
        while position < len(trace.ranks):
            if visited is not None:
                visited.append((number, position))
            taken = sum(rank < nodes for rank in trace.ranks[position])
            position += taken + 1
            done = Outcome(done.rounds + 1, done.tokens + taken + 1, done.nodes + nodes, done.time + cost)
    return done


def decode_adaptive(traces: Sequence[DraftTrace], plan: TreePlan, nodes: int) -> Outcome:
    """Every round as the runtime runs it: the node budget decides whether to draft, and how many of `nodes` nodes to verify."""
    done, capacity = Outcome(), plan.capacities[0]
    budget = NodeBudget(plan, nodes, nodes)
    cost = {count: plan.host_ms + plan.milliseconds(max(2, count + 1), capacity) for count in budget.counts}
    for trace in traces:
        position = 0
        budget.start()
        while position < len(trace.ranks):
            count = taken = 0
            if drafting := budget.should_draft():
                count = budget.count(budget.acceptance_probs(trace.scores[position, :nodes]), capacity)
                taken = sum(rank < count for rank in trace.ranks[position])
                budget.observe_acceptance(count, taken, capacity)
            position += taken + 1
            time = cost[count] + plan.draft_ms * drafting
            done = Outcome(done.rounds + 1, done.tokens + taken + 1, done.nodes + count, done.time + time)
    return done


def fixed_point(traces: Sequence[DraftTrace], plan: TreePlan, nodes: int, rounds: int = 6) -> tuple[TreePlan, Outcome]:
    """The plan whose expected rate is the one that decoding by it reaches, and that decoding.

    The rate is an input of the node budget itself, so it is iterated (Dinkelbach's method for the ratio tokens / time).
    """
    best = plan, decode_adaptive(traces, plan, nodes)
    for _ in range(rounds):
        plan = with_rate(plan, best[1].rate)
        outcome = decode_adaptive(traces, plan, nodes)
        if outcome.rate <= best[1].rate:
            break
        best = plan, outcome
    return with_rate(best[0], best[1].rate), best[1]


def with_rate(plan: TreePlan, rate: float) -> TreePlan:
    """The plan, expecting `rate` tokens per second."""
    return replace(plan, expected={**plan.expected, "tokens_per_second": rate})


def with_acceptance(traces: Sequence[DraftTrace], plan: TreePlan, nodes: int) -> TreePlan:
    """The plan with how often nodes are accepted, by score, counted at the positions where rounds of `nodes` nodes begin."""
    visited: list[tuple[int, int]] = []
    decode_fixed(traces, plan, nodes, visited)
    scores = np.concatenate([traces[text].scores[position] for text, position in visited])
    hits = np.concatenate([_hits(traces[text], position) for text, position in visited])
    return replace(plan, log_probs=_LOG_PROBS.tolist(), acceptance=acceptance_by_score(scores, hits).tolist())


def _hits(trace: DraftTrace, position: int) -> np.ndarray:
    found = np.zeros(trace.scores.shape[1])
    found[trace.ranks[position]] = 1
    return found


def acceptance_by_score(scores: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """How often nodes of a score are accepted, at `_LOG_PROBS`; isotonic: a better score is never accepted less often.

    Args:
        scores, hits: [nodes]; hits are 0 or 1

    The head's own probability counts as much as two nodes: a prior where there are few.
    """
    edges = (_LOG_PROBS[1:] + _LOG_PROBS[:-1]) / 2
    bins = np.digitize(scores, edges)
    total = np.bincount(bins, minlength=len(_LOG_PROBS)) + 2.0
    taken = np.bincount(bins, hits, minlength=len(_LOG_PROBS)) + 2.0 * np.exp(_LOG_PROBS)
    return isotonic(taken / total, total).round(5)


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Isotonic regression: the non-decreasing sequence nearest by weighted squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return np.concatenate([np.full(count, value) for value, _, count in blocks])
