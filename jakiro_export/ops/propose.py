"""Propose: every continuation of the nodes that one level of the tree expands."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import JAKIRO, CallSite, Example, Operand, Operator


def propose(scores: Tensor, log_probs: Tensor, tokens: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every candidate of a beam.

    Args:
        scores, numbers: of the beam's nodes, [batch, beam]
        log_probs, tokens: their candidates, [batch, beam, top_k]

    Returns:
        totals, tokens and parents, [batch, beam * top_k]; a parent is the beam node's number
    """
    width = log_probs.shape[-1]
    totals = (scores[:, :, None] + log_probs).flatten(1)
    return totals, tokens.flatten(1), numbers[:, :, None].expand(-1, -1, width).flatten(1)


@torch.library.custom_op("jakiro::propose", mutates_args=())
def fused_propose(scores: Tensor, log_probs: Tensor, tokens: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`propose` as one node of a traced module."""
    totals, proposed, parents = propose(scores, log_probs, tokens, numbers)
    return totals, proposed.clone(), parents.clone()  # torch allows no views of inputs


@fused_propose.register_fake
def _(scores: Tensor, log_probs: Tensor, tokens: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = (log_probs.shape[0], log_probs.shape[1] * log_probs.shape[2])
    return scores.new_empty(size), numbers.new_empty(size), numbers.new_empty(size)


def _translation(scores: Any, log_probs: Any, tokens: Any, numbers: Any) -> Any:
    return JAKIRO.Propose(scores, log_probs, tokens, numbers, _outputs=3)


def _body(b: Body, site: CallSite) -> tuple[str, ...]:
    last, flat = b.constant([-1]), b.constant([0, -1])
    sums = b.add("Add", b.add("Unsqueeze", "scores", last), "log_probs")
    shape = b.add("Shape", "log_probs")
    numbers = b.add("Expand", b.add("Unsqueeze", "numbers", last), shape)
    return b.add("Reshape", sums, flat), b.add("Reshape", "tokens", flat), b.add("Reshape", numbers, flat)


def _example(random: np.random.Generator) -> Example:
    batch, beam, top_k = 2, 3, 4
    return Example(
        {
            "scores": random.standard_normal((batch, beam)).astype(np.float32),
            "log_probs": random.standard_normal((batch, beam, top_k)).astype(np.float32),
            "tokens": random.integers(0, 100, (batch, beam, top_k)),
            "numbers": random.integers(0, 100, (batch, beam)),
        },
        {},
    )


_BEAM, _CANDIDATES, _PROPOSED = "[batch, beam]", "[batch, beam, top_k]", "[batch, beam * top_k]"
OPERATORS = (
    Operator(
        name="Propose",
        doc="Every continuation of a beam's nodes: sums of log-probabilities, tokens, and the numbers of their parents.",
        inputs=(
            Operand("scores", "float", _BEAM),
            Operand("log_probs", "float", _CANDIDATES),
            Operand("tokens", "int64", _CANDIDATES),
            Operand("numbers", "int64", _BEAM),
        ),
        outputs=(
            Operand("totals", "float", _PROPOSED),
            Operand("proposed", "int64", _PROPOSED),
            Operand("parents", "int64", _PROPOSED),
        ),
        eager=propose,
        body=_body,
        translation=(torch.ops.jakiro.propose.default, _translation),
        cpu_kernel=True,
        example=_example,
    ),
)
