"""Rotary position embedding: one node from opset 23 on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnxscript import opset23
from torch import Tensor

from jakiro_export.errors import ExportError
from jakiro_export.ops.operator import Example, Operand, Operator


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves: x [batch, heads, rows, head_dim]; cos and sin [batch, rows, head_dim / 2]."""
    left, right = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


# In a traced module: one node
fused_rotary = torch.library.custom_op("jakiro::rotary", rotary, mutates_args=())


@fused_rotary.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty_like(x)


def _translation(x: Any, cos: Any, sin: Any) -> Any:
    return opset23.RotaryEmbedding(x, cos, sin)


def _example(random: np.random.Generator) -> Example:
    angles = random.uniform(-3, 3, (2, 5, 4))
    inputs = {"x": random.standard_normal((2, 3, 5, 8)), "cos": np.cos(angles), "sin": np.sin(angles)}
    return Example({name: value.astype(np.float32) for name, value in inputs.items()}, {})


_ANGLES = "[batch, rows, head_dim / 2]"
OPERATORS = (
    Operator(
        name="RotaryEmbedding",
        domain="",
        doc="Rotary position embedding of halves.",
        inputs=(
            Operand("x", "T", "[batch, heads, rows, head_dim]"),
            Operand("cos", "T", _ANGLES),
            Operand("sin", "T", _ANGLES),
        ),
        outputs=(Operand("y", "T", "[batch, heads, rows, head_dim]"),),
        opset=23,
        eager=rotary,
        translation=(torch.ops.jakiro.rotary.default, _translation),
        example=_example,
    ),
)


# Kinds of scaling (config.json: "rope_type") that a graph cannot hold, and why
REFUSED_ROTARY = {
    **dict.fromkeys(("dynamic", "longrope"), "depends on the length at run time, which a graph cannot follow"),
    "mrope": "gives a row three positions, for pictures and text, where a graph has one",
}


def check_rotary(config: Any, whose: str) -> None:
    """Refuse a kind of rotary scaling that a graph cannot hold.

    Args:
        config: transformers' configuration
        whose: it is, for the message

    Raises:
        ExportError: what it is and why
    """
    given = getattr(config, "rope_parameters", None) or {}
    by_type = given.values() if given and all(isinstance(value, dict) for value in given.values()) else [given]
    for kind in sorted({str(value.get("rope_type", "default")) for value in by_type} & {*REFUSED_ROTARY}):
        raise ExportError(f"The {whose}'s rotary scaling {kind!r} {REFUSED_ROTARY[kind]}.")
