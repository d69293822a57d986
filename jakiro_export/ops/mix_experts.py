"""Mix experts: what expert dispatch does with the outputs of two experts, once their matmuls are operators of their own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import CallSite, Example, Operand, Operator

NAME = "MixExperts"


def mix_experts(router_logits: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The sum and the contrast of two experts' outputs [rows, hidden], router_logits [rows, 4]; see `expert_dispatch`."""
    w0, w1 = router_logits[:, :2].softmax(-1).chunk(2, -1)
    p0, p1 = router_logits[:, 2:].softmax(-1).chunk(2, -1)
    difference = p0 * first - p1 * second
    return w0 * first + w1 * second, torch.where(p0 > p1, difference, -difference)


def _body(b: Body, site: CallSite) -> tuple[str, ...]:
    for_sum, for_difference = b.add_many("Split", "router_logits", b.constant([2, 2]), outputs=2, axis=-1)
    w0, w1 = b.add_many("Split", b.add("Softmax", for_sum, axis=-1), outputs=2, axis=-1, num_outputs=2)
    primary = b.add("Add", b.add("Mul", w0, "first"), b.add("Mul", w1, "second"))
    p0, p1 = b.add_many("Split", b.add("Softmax", for_difference, axis=-1), outputs=2, axis=-1, num_outputs=2)
    difference = b.add("Sub", b.add("Mul", p0, "first"), b.add("Mul", p1, "second"))
    return primary, b.add("Where", b.add("Greater", p0, p1), difference, b.add("Neg", difference))


def _example(random: np.random.Generator) -> Example:
    shapes = {"router_logits": (5, 4), "first": (5, 33), "second": (5, 33)}
    return Example({name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}, {})


_ROWS = "[rows, hidden]"
OPERATORS = (
    Operator(
        name=NAME,
        doc="The sum and the contrast of two experts' outputs.",
        inputs=(
            Operand("router_logits", "float", "[rows, 4]"),
            Operand("first", "float", _ROWS),
            Operand("second", "float", _ROWS),
        ),
        outputs=(Operand("primary", "float", _ROWS), Operand("contrast", "float", _ROWS)),
        eager=mix_experts,
        body=_body,
        cpu_kernel=True,
        example=_example,
    ),
)
