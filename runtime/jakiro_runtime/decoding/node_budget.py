"""How much of a drafted tree a round verifies, and whether it drafts at all.

A node is accepted where its whole path is, so a round that verifies the n best nodes gains 1 + the sum of their chances of being
accepted. Rounds follow each other, so what counts is the rate in the long run: a node is worth its row while it brings more
tokens than the same milliseconds bring on average. Chances and costs are those that `jakiro-export --tree auto` measured, and so
is the average rate an answer begins with; no clock is read, so the same engine verifies the same nodes wherever it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from jakiro_runtime.format.manifest import TreePlan

_WINDOW = 32  # rounds over which the worth of drafting is averaged
_LONGEST_PAUSE = 4  # rounds without a draft before another one is tried; they are drafted behind in one call


class NodeBudget:
    """The choice for one sequence.

    Args:
        plan: what was measured
        nodes: of the tree that the engine drafts
        most: nodes that it may choose, where guesses join the tree

    counts: the numbers of nodes that it may choose, ascending; 0 among them
    """

    def __init__(self, plan: TreePlan, nodes: int, most: int) -> None:
        inner = {rows - 1 for rows in plan.rows if 2 < rows <= most}
        self.counts = sorted({0, *inner, nodes, most})
        self._plan = plan
        self._log_probs, self._acceptance = np.array(plan.log_probs), np.array(plan.acceptance)
        self._extra: dict[int, list[float]] = {}
        self.start()

    def start(self) -> None:
        """An answer begins: nothing of the one before is used, so that an answer does not depend on what came earlier."""
        self._rate = self._plan.expected["tokens_per_second"] / 1e3
        self._milliseconds = self._plan.draft_ms + self._plan.host_ms + self._plan.milliseconds(4, min(self._plan.capacities))
        self._tokens = self._rate * self._milliseconds
        self._worth = self._rate * self._plan.milliseconds(2, min(self._plan.capacities)) - 1
        self._pause = self._paused = 0

    def should_draft(self) -> bool:
        """Whether the next round drafts. Where drafts of late were not worth their time, some rounds go without."""
        if self._paused < self._pause:
            self._paused += 1
            return False
        return True

    def acceptance_probs(self, scores: np.ndarray) -> list[float]:
        """How likely the target accepts drafted nodes, by their cumulative log-probabilities under the head; [nodes] both.

        Where the plan has one chance for several log-probabilities, the head's order decides.
        """
        found: list[float] = (np.interp(scores, self._log_probs, self._acceptance) + 1e-9 * scores).tolist()
        return found

    def count(self, chances: Sequence[float], capacity: int) -> int:
        """How many of the best nodes to verify.

        Args:
            chances: of being accepted, best first
            capacity: slots of the target's cache, which its attention runs over
        """
        gains, prices = [0.0, *accumulate(chances)], self._price(capacity)
        worth = [gains[count] - price for count, price in zip(self.counts, prices, strict=True) if count < len(gains)]
        return self.counts[worth.index(max(worth))]

    def observe_acceptance(self, nodes: int, accepted: int, capacity: int) -> None:
        """A round that drafted has verified so many nodes and accepted so many of them.

        Only what the draft brought is to be told: not nodes that are looked up, since these come without it.
        """
        price = float(np.interp(nodes, self.counts, self._price(capacity)))
        self._worth += (accepted - price - self._rate * self._plan.draft_ms - self._worth) / _WINDOW
        self._paused = 0
        self._pause = 0 if self._worth >= 0 else min(_LONGEST_PAUSE, 2 * self._pause or 1)

    def observe_throughput(self, nodes: int, gained: int, drafted: bool, capacity: int) -> None:
        """A round has verified so many nodes and gained so many tokens: the average rate follows this answer.

        For answers that are guessed at, too: the plan knows the head alone, and an answer that repeats itself is much faster.
        """
        took = self._plan.milliseconds(max(2, 1 + nodes), capacity) + self._plan.host_ms + self._plan.draft_ms * drafted
        self._milliseconds += (took - self._milliseconds) / _WINDOW
        self._tokens += (gained - self._tokens) / _WINDOW
        self._rate = self._tokens / self._milliseconds

    def _price(self, capacity: int) -> list[float]:
        """What verifying so many nodes costs beyond verifying none, in tokens, [counts]."""
        if capacity not in self._extra:
            milliseconds = [self._plan.milliseconds(max(2, 1 + count), capacity) for count in self.counts]
            self._extra[capacity] = [each - milliseconds[0] for each in milliseconds]
        return [self._rate * each for each in self._extra[capacity]]
