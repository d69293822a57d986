"""Sampled draft vocabulary: the columns that a training step looks at, and the target's probabilities of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 256  # whose logits are held at once


class Columns(NamedTuple):
    """The columns of the draft vocabulary that a step looks at.

    projection, bias: their logits are `feature @ projection.T + bias`, [columns, hidden] and [columns]
    wanted: the target's probabilities of them after every feature of an answer, [batch, length, columns]; other rows hold nothing
    """

    projection: Tensor
    bias: Tensor
    wanted: Tensor


def sample_columns(projection: Tensor, features: Tensor, answers: Tensor, columns: int) -> Columns:
    """The columns for a batch.

    Args:
        projection: of the draft vocabulary, [draft vocab, hidden]
        features: the target's, [batch, length, hidden]
        answers: the rows that count, [batch, length]
        columns: how many to look at
    """
    shares, chosen, counts = target_shares(projection, features[answers], columns)
    wanted = shares.new_empty(*answers.shape, len(chosen))
    wanted[answers] = shares
    return Columns(projection[chosen], counts.log(), wanted)


def target_shares(projection: Tensor, features: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The target's probabilities after its features, [rows, hidden], over the columns that this step looks at.

    Three in four are the tokens that are likeliest in these rows. The others are drawn from the rest of the draft vocabulary,
    and each stands for as many of it as there are to one drawn: sums over the columns are those over the whole, on average.
    Computed in the projection's type.

    Returns:
        shares [rows, columns]; which columns of the draft vocabulary; how many tokens each of them stands for
    """
    vocab, dtype = len(projection), projection.dtype
    shares = torch.empty(len(features), vocab, dtype=dtype)
    for start in range(0, len(features), _ROWS):
        part = slice(start, start + _ROWS)
        shares[part] = (features[part].to(dtype) @ projection.T).float().softmax(-1).to(dtype)
    if columns >= vocab:
        return shares, torch.arange(vocab), torch.ones(vocab)
    likely = columns * 3 // 4
    order = shares.sum(0, dtype=torch.float32).argsort(descending=True)
    drawn = order[likely:][torch.randperm(vocab - likely)[: columns - likely]]
    chosen, counts = torch.cat([order[:likely], drawn]), torch.ones(columns)
    counts[likely:] = (vocab - likely) / len(drawn)
    return shares[:, chosen] * counts.to(dtype), chosen, counts
