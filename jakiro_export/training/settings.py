"""Training settings, and the schedules that follow from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How a head is trained. Every value was chosen on held-out text, see the shipped head's card."""

    hours: float | None = 1.0
    steps: int | None = None
    seed: int = 0
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    noise: float = 0.1  # uniform, as a share of the features' standard deviation
    batch_tokens: int = 1024
    draft_vocab: int = 8192  # the loss sees the most frequent tokens only, as the exported graph does
    columns: int = 2048  # tokens of these that a step looks at: the likeliest in its text, and a sample that stands for the rest
    chain: int = 4  # steps through the head's own predictions, reached in three phases
    decay: float = 0.8  # weight of a step against the one before it
    feature_loss: float = 20.0  # SmoothL1 between predicted and true features, in standard deviations
    contrast_loss: float = 0.4  # the parallel step's second guess, from the second phase on
    held_out: int = 96  # conversations
    depths: int = 4  # measured on them
    trained: bool = False  # the head was trained before: chains are long, and the second guess learns, from the start

    def chain_at(self, share: float) -> int:
        """Steps to train after a share of the training: short chains first, they cost less."""
        return max(1, self.chain if share >= 0.6 or self.trained else min(2, self.chain) if share >= 0.3 else 1)

    def guesses_ahead(self, share: float) -> bool:
        """Whether the parallel step's second guess is trained, too."""
        return self.contrast_loss > 0 and (share >= 0.3 or self.trained)

    def rate_at(self, share: float) -> float:
        """The learning rate: a short rise, then half a cosine."""
        return self.learning_rate * min(1.0, share / 0.02 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, share)))

    def without_length(self) -> dict[str, Any]:
        """Everything but how long the training takes."""
        return {name: value for name, value in asdict(self).items() if name not in ("hours", "steps")}
