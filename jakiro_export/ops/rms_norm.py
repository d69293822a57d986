"""RMS norm: one node from opset 23 on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnxscript import opset23
from torch import Tensor

from jakiro_export.ops.operator import Attribute, Example, Operand, Operator


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm over the last axis, in float32, then scaled by `weight`; any shape."""
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
    return normed.to(x.dtype) * weight


# In a traced module: one node
fused_rms_norm = torch.library.custom_op("jakiro::rms_norm", rms_norm, mutates_args=())


@fused_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x)


def _translation(x: Any, weight: Any, epsilon: float) -> Any:
    return opset23.RMSNormalization(x, weight, axis=-1, epsilon=epsilon)


def _example(random: np.random.Generator) -> Example:
    x, weight = random.standard_normal((2, 5, 24)), 1 + random.standard_normal(24) / 10
    return Example({"x": x.astype(np.float32), "weight": weight.astype(np.float32)}, {"epsilon": 1e-5})


OPERATORS = (
    Operator(
        name="RMSNormalization",
        domain="",
        doc="Root-mean-square norm over the last axis.",
        inputs=(Operand("x", "T", "[..., hidden]"), Operand("weight", "T", "[hidden]")),
        outputs=(Operand("y", "T", "[..., hidden]"),),
        attributes={"epsilon": Attribute("float", "added to the mean square", 1e-5)},
        opset=23,
        eager=rms_norm,
        translation=(torch.ops.jakiro.rms_norm.default, _translation),
        example=_example,
    ),
)
