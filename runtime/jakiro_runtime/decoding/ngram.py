"""N-gram proposals: what followed the last few tokens where they stood before in the text (prompt lookup; Saxena, 2023).

They cost a few dictionary look-ups and no graph. A wrong one costs the row that verified it, so each comes with its acceptance
probability, as the draft's nodes do: from how many tokens match, and from how such proposals fared in this answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple

_LENGTHS = (6, 4, 2, 1)  # tokens of a match, longest first
_LONGEST = _LENGTHS[0]
# How often what followed a match follows again, by the length of the match from 0, before anything was counted
_PRIOR = (0.0, 0.2, 0.5, 0.6, 0.7, 0.75, 0.8)
_WEIGHT = 4.0  # tries that the prior counts for


class Proposal(NamedTuple):
    """A chain of tokens that may come next, and of each the probability that it and all before it do; both empty for none."""

    tokens: list[int]
    acceptance_probs: list[float]

    def first(self, count: int) -> Proposal:
        """Its first `count` tokens."""
        return Proposal(self.tokens[:count], self.acceptance_probs[:count])

    @property
    def is_unbeatable(self) -> bool:
        """Whether no other tree of as many nodes is better, whatever the head would say.

        A sibling of one of its nodes shares the position with that node: its probability is the rest at most.
        """
        above = 1.0
        for prob in self.acceptance_probs:
            if above - prob > self.acceptance_probs[-1]:
                return False
            above = prob
        return bool(self.acceptance_probs)

    def matches(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, it has."""
        matched = 0
        for ours, token in zip(self.tokens, tokens, strict=False):
            if ours != token:
                break
            matched += 1
        return matched


NO_PROPOSAL = Proposal([], [])


class NGramProposer:
    """Proposals for one sequence. They depend on its tokens, and on which of them were proposed together, alone.

    Args:
        tokens: prompt and answer; the caller appends to this list, and does nothing else to it
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._known = 0  # tokens that were indexed
        # by length: the position after each run of that many tokens, where it stood last
        self._after: dict[int, dict[tuple[int, ...], int]] = {length: {} for length in _LENGTHS}
        self._tries, self._hits = [_WEIGHT] * (_LONGEST + 1), [_WEIGHT * prob for prob in _PRIOR]
        self._last, self._matched = NO_PROPOSAL, 0
        self._index()

    def propose(self, most: int) -> Proposal:
        """What may come next: the `most` tokens after the longest match, or none.

        Where the text ends in the middle of what it repeats, the chain goes round: the text may be a loop.
        """
        self._count()
        self._index()
        tokens, end = self._tokens, len(self._tokens)
        for length, after in self._after.items():
            start = after.get(tuple(tokens[-length:])) if length < end else None
            if start is not None:
                self._matched = length
                chain = tokens[start : start + most]
                while len(chain) < most:
                    chain += tokens[start : start + most - len(chain)]
                links = [hits / tries for hits, tries in zip(self._hits[length:], self._tries[length:], strict=True)]
                links += [links[-1]] * (most - len(links))  # longer matches count as the longest
                self._last = Proposal(chain, list(accumulate(links[:most], mul)))
                return self._last
        self._last = NO_PROPOSAL
        return NO_PROPOSAL

    def _count(self) -> None:
        """Count how the last proposal fared: up to the first token that was another one, since nothing after it was tried."""
        came = self._tokens[self._known :]
        for matched, (proposed, token) in enumerate(zip(self._last.tokens, came, strict=False), self._matched):
            self._tries[min(matched, _LONGEST)] += 1
            if proposed != token:
                return
            self._hits[min(matched, _LONGEST)] += 1

    def _index(self) -> None:
        """Index which position follows which run, as far as that is new."""
        tokens, end = self._tokens, len(self._tokens)
        for length, after in self._after.items():
            for place in range(max(self._known, length), end):
                after[tuple(tokens[place - length : place])] = place
        self._known = end
