"""Node budgets: how much of a drafted tree a round verifies, and whether it drafts at all.

A node is accepted where its whole path is, so a round that verifies the n best nodes gains 1 + the sum of their acceptance
probabilities. Rounds follow each other, so what counts is the rate in the long run: a node is worth its row while it brings more
tokens than the same milliseconds bring on average (Dinkelbach's method for a ratio). Probabilities and costs are those that
`jakiro-export --tree auto` measured, and so is the average rate an answer begins with; no clock is read, so the same engine
verifies the same nodes wherever it runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, zip_longest

import numpy as np

from jakiro_runtime.format.tree_plan import TreePlan

_WINDOW = 32  # rounds over which the worth of drafting is averaged
_LONGEST_PAUSE = 4  # rounds without a draft before another one is tried; their rows are drafted in one call then
_ROW_STEP = 8  # without a plan, pruned trees are padded to a multiple of this: few shapes, few bindings


def mean_probs(each: Sequence[Sequence[float]]) -> list[float]:
    """Means of several sequences' probabilities, best first: what each further node of all of them gains."""
    if len(each) == 1:
        return sorted(each[0], reverse=True)
    ranked = [sorted(probs, reverse=True) for probs in each]
    return [sum(column) / len(each) for column in zip_longest(*ranked, fillvalue=0.0)]


class FixedBudget:
    """The same number of nodes in every round.

    most: nodes of a round at most
    row_counts: numbers of rows that a verification is padded to, ascending
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.row_counts = sorted({1, *range(_ROW_STEP, 1 + most, _ROW_STEP), 1 + most})

    def start(self) -> None:
        """An answer begins."""

    def should_draft(self) -> bool:
        """Always: nothing is known of what a draft costs."""
        return True

    def takes_all(self, nodes: int) -> bool:
        """Whether a tree of `nodes` nodes is verified whole."""
        return nodes <= self.most

    def acceptance_probs(self, scores: np.ndarray) -> list[float]:
        """The head's own probabilities, from cumulative log-probabilities; [nodes] both."""
        return [math.exp(score) for score in scores.tolist()]

    def count(self, probs: Sequence[float], capacity: int) -> int:
        """How many of the best nodes to verify."""
        return self.most

    def observe_acceptance(self, nodes: float, accepted: float, capacity: int) -> None:
        """Nothing depends on it."""

    def observe_throughput(self, nodes: int, gained: float, drafted: bool, capacity: int) -> None:
        """Nothing depends on it."""


class NodeBudget:
    """The nodes that are worth their rows, by a measured plan, for one sequence or for each of a batch.

    A pass has as many rows for each sequence of a batch as for the others, so they share one number, by their mean gains. Rows
    are taken to cost what as many rows of one sequence do, and drafts and the host as much for each sequence as for one.

    Args:
        plan: what was measured, of one sequence
        nodes: of the tree that the engine drafts
        most: nodes that it may verify, where n-grams join the tree
        batch: sequences

    counts: the numbers of nodes that it may choose, ascending; 0 among them
    row_counts: numbers of rows that a verification is padded to, ascending
    """

    def __init__(self, plan: TreePlan, nodes: int, most: int, batch: int = 1) -> None:
        inner = {rows - 1 for rows in plan.rows if 2 < rows <= most}
        self.most = most
        self.counts = sorted({0, *inner, nodes, most})
        self.row_counts = sorted({1, *(count + 1 for count in self.counts), 1 + most})
        self._plan, self._batch = plan, batch
        self._draft_ms, self._host_ms = batch * plan.draft_ms, batch * plan.host_ms
        self._log_probs, self._acceptance = np.array(plan.log_probs), np.array(plan.acceptance)
        self._passes: dict[tuple[int, int], float] = {}
        self._extra: dict[int, list[float]] = {}
        self.start()

    def start(self) -> None:
        """An answer begins: nothing of the one before is used, so that an answer does not depend on what came earlier."""
        plan, slots = self._plan, min(self._plan.capacities)
        alone = plan.draft_ms + plan.host_ms + plan.milliseconds(4, slots)
        self._milliseconds = self._draft_ms + self._host_ms + plan.milliseconds(4 * self._batch, slots)
        self._rate = plan.expected["tokens_per_second"] / 1e3 * (alone / self._milliseconds)  # of each sequence
        self._tokens = self._rate * self._milliseconds
        self._worth = self._rate * plan.milliseconds(2 * self._batch, slots) - 1
        self._pause = self._paused = 0

    def should_draft(self) -> bool:
        """Whether the next round drafts. Where drafts of late were not worth their time, some rounds go without."""
        if self._paused < self._pause:
            self._paused += 1
            return False
        return True

    def takes_all(self, nodes: int) -> bool:
        """Whether a tree of `nodes` nodes is verified whole; only an empty one is without looking at its probabilities."""
        return nodes == 0

    def acceptance_probs(self, scores: np.ndarray) -> list[float]:
        """How likely the target accepts drafted nodes, by their cumulative log-probabilities under the head; [nodes] both.

        Where the plan has one probability for several log-probabilities, the head's order decides.
        """
        found: list[float] = (np.interp(scores, self._log_probs, self._acceptance) + 1e-9 * scores).tolist()
        return found

    def count(self, probs: Sequence[float], capacity: int) -> int:
        """How many of the best nodes to verify.

        Args:
            probs: of being accepted, best first; `mean_probs` of a batch
            capacity: slots of the target's cache, which its attention runs over
        """
        gains, prices = [0.0, *accumulate(probs)], self._price(capacity)
        worth = [gains[count] - price for count, price in zip(self.counts, prices, strict=True) if count < len(gains)]
        return self.counts[worth.index(max(worth))]

    def observe_acceptance(self, nodes: float, accepted: float, capacity: int) -> None:
        """A round that drafted has verified `nodes` nodes of the head's and accepted `accepted` of them, in the mean of a batch.

        What n-grams brought does not count: it comes without a draft.
        """
        price = float(np.interp(nodes, self.counts, self._price(capacity)))
        self._worth += (accepted - price - self._rate * self._draft_ms - self._worth) / _WINDOW
        self._paused = 0
        self._pause = 0 if self._worth >= 0 else min(_LONGEST_PAUSE, 2 * self._pause or 1)

    def observe_throughput(self, nodes: int, gained: float, drafted: bool, capacity: int) -> None:
        """A round has verified `nodes` nodes and gained `gained` tokens: the average rate follows.

        Of a batch the most nodes, and the mean of the tokens.

        For answers that n-grams help: the plan knows the head alone, and an answer that repeats itself is much faster.
        """
        took = self._pass_ms(nodes, capacity) + self._host_ms + self._draft_ms * drafted
        self._milliseconds += (took - self._milliseconds) / _WINDOW
        self._tokens += (gained - self._tokens) / _WINDOW
        self._rate = self._tokens / self._milliseconds

    def _pass_ms(self, nodes: int, capacity: int) -> float:
        """Milliseconds of a target pass over the root and `nodes` nodes."""
        asked = nodes, capacity
        if asked not in self._passes:
            self._passes[asked] = self._plan.milliseconds(self._batch * max(2, 1 + nodes), capacity)
        return self._passes[asked]

    def _price(self, capacity: int) -> list[float]:
        """What verifying each of `counts` costs beyond verifying no node, in tokens, [counts]."""
        if capacity not in self._extra:
            milliseconds = [self._pass_ms(count, capacity) for count in self.counts]
            self._extra[capacity] = [each - milliseconds[0] for each in milliseconds]
        return [self._rate * each for each in self._extra[capacity]]
