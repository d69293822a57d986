"""Training batches: conversations of similar length together, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jakiro_export.training.features import Text, grouped


class Batch(NamedTuple):
    """Padded conversations.

    tokens: [batch, length]
    features: float32 [batch, length, hidden], which the head is to predict
    states: float32 [batch, length, width], which it reads: the same, or the inputs of several layers
    answers: which rows may be guessed from, those of the answers, [batch, length]
    """

    tokens: Tensor
    features: Tensor
    states: Tensor
    answers: Tensor


class Batches:
    """The batches of a text's training conversations.

    Args:
        numbers: the conversations to train on
        batch_tokens: the most tokens of a batch, padding included
    """

    def __init__(self, text: Text, numbers: np.ndarray, batch_tokens: int, seed: int) -> None:
        self.text, self.numbers = text, numbers
        self._batch_tokens, self._seed, self._lengths = batch_tokens, seed, text.lengths
        self._first = np.array([text.first_row(n) for n in range(len(text.tokens))])

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The conversation numbers of each batch of an epoch."""
        rng, lengths = np.random.default_rng((self._seed, epoch)), self._lengths
        order = self.numbers[np.argsort(lengths[self.numbers] + rng.uniform(0, 24, len(self.numbers)), kind="stable")]
        groups = grouped(lengths[order], self._batch_tokens)
        return [order[groups[n]] for n in rng.permutation(len(groups))]

    def load(self, group: np.ndarray) -> Batch:
        """Read one batch."""
        lengths = self._lengths[group]
        longest = int(lengths.max())
        tokens = np.zeros((len(group), longest), np.int64)
        for row, (n, length) in enumerate(zip(group, lengths, strict=True)):
            tokens[row, :length] = self.text.tokens[n]
        features = self._padded(self.text.features, group, longest)
        fused = self.text.states[group[0]].shape[1] != features.shape[-1]
        states = self._padded(self.text.states, group, longest) if fused else features
        rows = np.arange(longest)[None, :]
        answers = (rows >= self._first[group][:, None]) & (rows < lengths[:, None])
        return Batch(torch.from_numpy(tokens), features, states, torch.from_numpy(answers))

    def _padded(self, rows: Sequence[np.ndarray], group: np.ndarray, longest: int) -> Tensor:
        """Rows of these conversations, float32 [batch, longest, width]."""
        out = np.zeros((len(group), longest, rows[group[0]].shape[1]), np.float16)
        for row, n in enumerate(group):
            out[row, : self._lengths[n]] = rows[n]
        return torch.from_numpy(out).float()
