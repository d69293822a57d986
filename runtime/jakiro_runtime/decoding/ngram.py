"""Guesses from the text itself: what followed the last few tokens where they stood before (prompt lookup; Saxena, 2023).

They cost a few dictionary look-ups and no graph. A guess that is wrong costs the row that verified it, so each comes with its
chance, as the draft's nodes do: from how many tokens of the text match, and from how such guesses fared in this answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple

_LENGTHS = (6, 4, 2, 1)  # tokens of a match, longest first
_LONGEST = _LENGTHS[0]
# How often what followed a match follows again, by the tokens that match, from 0, before anything was counted
_PRIOR = (0.0, 0.2, 0.5, 0.6, 0.7, 0.75, 0.8)
_WEIGHT = 4.0  # the prior counts for so many tries


class Proposal(NamedTuple):
    """A chain of tokens that may come next, and of each the chance that it and all before it do; both empty for none."""

    tokens: list[int]
    chances: list[float]

    def first(self, count: int) -> Proposal:
        """Its first so many tokens."""
        return Proposal(self.tokens[:count], self.chances[:count])

    @property
    def settles(self) -> bool:
        """Whether no other tree of as many nodes is better, whatever the head would say.

        A node beside the chain shares the chance of the place with the chain's next node: it has the rest at most.
        """
        above = 1.0
        for chance in self.chances:
            if above - chance > self.chances[-1]:
                return False
            above = chance
        return bool(self.chances)

    def right(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, from the first on, it has."""
        right = 0
        for ours, token in zip(self.tokens, tokens, strict=False):
            if ours != token:
                break
            right += 1
        return right


NO_PROPOSAL = Proposal([], [])


class NGramProposer:
    """The guesses of one answer. Depends on its tokens, and on which of them were guessed together, alone.

    Args:
        tokens: prompt and answer; the caller appends to this list, and does nothing else to it
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._known = 0  # tokens that were indexed
        # for each length: which place follows a run of so many tokens, where it stood last
        self._behind: dict[int, dict[tuple[int, ...], int]] = {length: {} for length in _LENGTHS}
        self._tries, self._hits = [_WEIGHT] * (_LONGEST + 1), [_WEIGHT * chance for chance in _PRIOR]
        self._guess, self._matched = NO_PROPOSAL, 0
        self._index()

    def guess(self, most: int) -> Proposal:
        """What may come next: `most` tokens behind the longest match, or none.

        Where the text ends in the middle of what it repeats, the chain goes round: the text may be a loop.
        """
        self._count()
        self._index()
        tokens, end = self._tokens, len(self._tokens)
        for length, behind in self._behind.items():
            start = behind.get(tuple(tokens[-length:])) if length < end else None
            if start is not None:
                self._matched = length
                chain = tokens[start : start + most]
                while len(chain) < most:
                    chain += tokens[start : start + most - len(chain)]
                links = [hits / tries for hits, tries in zip(self._hits[length:], self._tries[length:], strict=True)]
                links += [links[-1]] * (most - len(links))  # longer matches count as the longest
                self._guess = Proposal(chain, list(accumulate(links[:most], mul)))
                return self._guess
        self._guess = NO_PROPOSAL
        return NO_PROPOSAL

    def _count(self) -> None:
        """Count how the last guess fared: up to the first token that was another one, since behind that nothing was tried."""
        came = self._tokens[self._known :]
        for matched, (guessed, token) in enumerate(zip(self._guess.tokens, came, strict=False), self._matched):
            self._tries[min(matched, _LONGEST)] += 1
            if guessed != token:
                return
            self._hits[min(matched, _LONGEST)] += 1

    def _index(self) -> None:
        """Note which token follows which run, as far as that is new."""
        tokens, end = self._tokens, len(self._tokens)
        for length, behind in self._behind.items():
            for place in range(max(self._known, length), end):
                behind[tuple(tokens[place - length : place])] = place
        self._known = end
