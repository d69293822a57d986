"""Held-out accuracy: how often a head guesses what the target would write."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jakiro_export.training.features import Text
from jakiro_export.training.model import TrainedHead


@dataclass
class Measure:
    """Held-out figures at one moment. `accuracy[d]`: how often the best guess at depth d is what the target would write.

    contrast: the same of the parallel step's second guess, one position beyond the last depth; None for a head without one
    """

    step: int
    hours: float
    loss: float
    accuracy: list[float]
    contrast: float | None

    @property
    def chain_tau(self) -> float:
        """Tokens per target pass if only the single best guess were drafted at each depth."""
        return 1.0 + sum(math.prod(self.accuracy[: n + 1]) for n in range(len(self.accuracy)))


class HeldOut:
    """Conversations of a text to measure on: those that no head is trained on, or others to compare them with.

    numbers: which they are
    near_ties: the share of positions of the answers at which the target's two best logits differ by less than each width: what
        no head can know
    """

    def __init__(self, text: Text, numbers: np.ndarray, projection: Tensor) -> None:
        """projection: the target's, [vocab, hidden]; its choices are from the whole vocabulary, whatever a head proposes from."""
        self.numbers = numbers
        self._tokens = [torch.from_numpy(text.tokens[n]).long() for n in self.numbers]
        self._features = [torch.from_numpy(np.array(text.features[n])) for n in self.numbers]
        self._states = [torch.from_numpy(np.array(text.states[n])) for n in self.numbers]
        self._from = [text.first_row(n) for n in self.numbers]
        exact = projection.float().T
        best = [(features.float() @ exact).topk(2, -1) for features in self._features]
        self._truth = [tokens[:, 0] for _, tokens in best]
        margin = torch.cat([(logits[:, 0] - logits[:, 1])[start:] for start, (logits, _) in zip(self._from, best, strict=True)])
        self.near_ties = {str(width): round(float((margin < width).float().mean()), 4) for width in (0.1, 0.25, 0.5, 1.0)}

    @torch.no_grad()
    def accuracy(
        self, head: TrainedHead, embedding: Tensor, projection: Tensor, tokens: Tensor, depths: int
    ) -> tuple[list[float], float | None]:
        """How often a head's best guess is the target's choice, in the answers.

        Args:
            embedding: the target's, [vocab, hidden]
            projection: the rows of the target's that the head proposes from, [draft vocab, hidden]
            tokens: which they are, [draft vocab]
            depths: how many guesses in a row, each from the feature that the one before it predicted

        Returns:
            at each depth; and of the parallel step, one position beyond the last, where the head has one
        """

        def hits(guess: Tensor, truth: Tensor) -> np.ndarray:
            best = tokens[(guess.to(projection.dtype) @ projection.T).argmax(-1)]
            return np.array([int((best == truth).sum()), len(truth)])

        found = np.zeros((depths + 1, 2))
        for start, ids, states, truth in zip(self._from, self._tokens, self._states, self._truth, strict=True):
            embeddings = torch.nn.functional.embedding(ids[None, 1:], embedding)
            for step, (primary, contrast) in enumerate(head.steps(embeddings, states[None, :-1].float(), depths)):
                row = start + step
                found[step] += hits(primary[0, row:], truth[row + 1 :])
                if step == depths - 1 and contrast is not None:
                    found[depths] += hits(contrast[0, row:-1], truth[row + 2 :])
        shares = (found[:, 0] / found[:, 1].clip(1)).tolist()
        return shares[:-1], shares[-1] if head.sizes.experts else None
