"""SwiGLU: silu of one half of a row times the other."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import CallSite, Example, Operand, Operator

NAME = "SwiGlu"


def swiglu(both: Tensor) -> Tensor:
    """[..., inner] of gates and ups [..., 2 * inner]."""
    gate, up = both.chunk(2, -1)
    return F.silu(gate) * up


def swiglu_body(b: Body, both: str) -> str:
    """SwiGLU in standard operators; the result's name."""
    gate, up = b.add_many("Split", both, outputs=2, axis=-1, num_outputs=2)
    return b.add("Mul", b.add("Mul", gate, b.add("Sigmoid", gate)), up)


def _body(b: Body, site: CallSite) -> tuple[str, ...]:
    return (swiglu_body(b, "both"),)


def _example(random: np.random.Generator) -> Example:
    return Example({"both": (5 * random.standard_normal((2, 3, 72))).astype(np.float32)}, {})


OPERATORS = (
    Operator(
        name=NAME,
        doc="Silu of the first half of a row times the second.",
        inputs=(Operand("both", "float", "[..., 2 * inner]"),),
        outputs=(Operand("y", "float", "[..., inner]"),),
        eager=swiglu,
        body=_body,
        cpu_kernel=True,
        example=_example,
    ),
)
