"""Constraints: rules that allow some tokens only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Constraint:
    """A rule that allows some tokens only and is told of every token that was chosen; see `jakiro_runtime.sampling.grammar`."""

    def allowed(self) -> np.ndarray | None:
        """Which tokens may come next, bool [vocab]; None where all may."""
        raise NotImplementedError

    def advance(self, token: int) -> None:
        """A token was chosen."""
        raise NotImplementedError

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        """How many of these tokens, one after the other, the rule would allow now."""
        raise NotImplementedError
