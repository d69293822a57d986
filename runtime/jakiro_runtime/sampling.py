"""How a token is chosen from the target's output. Speculation takes no part in it.

`Greedy` is the arg max, computed in the graph. A sampler that draws needs logits and one pseudo-random number per position, so
that the same seed gives the same tokens on any tree; it answers the same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Chooser(Protocol):
    """Chooses the token behind a row of the target's output."""

    needs_logits: bool

    def choose(self, best: int, logits: np.ndarray | None, prefix: Sequence[int], position: int) -> int:
        """The next token.

        Args:
            best: the arg max
            logits: [vocab], or None where `needs_logits` is off
            prefix: every token before it: prompt, answer so far, and the path in the tree
            position: how many tokens of the answer come before it; what a random number is keyed by
        """


class Greedy:
    """The best token."""

    needs_logits = False

    def choose(self, best: int, logits: np.ndarray | None, prefix: Sequence[int], position: int) -> int:
        return best
