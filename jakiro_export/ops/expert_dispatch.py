"""Expert dispatch: the mixture of experts inside a Jakiro head.

The first `experts` router logits choose and weigh the experts (softmax over the best `top_k`, ties to the lower index); the
last two weigh experts 0 and 1 against each other in the contrast output (arXiv 2502.06282, section 3). ONNX Runtime inlines
the body; a TensorRT plugin of the same name replaces it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor

from jakiro_export.ops import DOMAIN
from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import JAKIRO, VERSION, Attribute, CallSite, Example, Operand, Operator

NAME = "ExpertDispatch"


def expert_dispatch(
    x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor, top_k: int, contrast: bool
) -> tuple[Tensor, Tensor]:
    """The mixture.

    Args:
        x: [rows, hidden]
        router_logits: [rows, experts + 2]
        gate_up: [experts, 2 * inner, hidden]
        down: [experts, hidden, inner]
        contrast: without it nobody may read the second output; here it is zero then

    Returns:
        primary, contrast: [rows, hidden]
    """
    experts = gate_up.shape[0]
    gate, up = (x @ gate_up.transpose(1, 2)).chunk(2, -1)  # [experts, rows, inner]
    outputs = (F.silu(gate) * up) @ down.transpose(1, 2)  # [experts, rows, hidden]
    routing = router_logits[:, :experts]
    if top_k < experts:
        kept = torch.full_like(routing, float("-inf"))
        best, index = routing.sort(dim=-1, descending=True, stable=True)
        routing = kept.scatter(1, index[:, :top_k], best[:, :top_k])
    weights = routing.softmax(-1).T[..., None]  # [experts, rows, 1]
    primary = (weights * outputs).sum(0)
    if not contrast:
        return primary, torch.zeros_like(primary)
    share = router_logits[:, experts:].softmax(-1)
    difference = share[:, :1] * outputs[0] - share[:, 1:] * outputs[1]
    first = router_logits[:, experts : experts + 1] > router_logits[:, experts + 1 :]
    return primary, torch.where(first, difference, -difference)


# In a traced module: one node
fused_expert_dispatch = torch.library.custom_op("jakiro::expert_dispatch", expert_dispatch, mutates_args=())


@fused_expert_dispatch.register_fake
def _(x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor, top_k: int, contrast: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _translation(x: Any, router_logits: Any, gate_up: Any, down: Any, top_k: int, contrast: bool) -> Any:
    return JAKIRO.ExpertDispatch(
        x, router_logits, gate_up, down, top_k=top_k, contrast=int(contrast), plugin_namespace=DOMAIN, _outputs=2
    )


def _body(b: Body, site: CallSite) -> tuple[str, ...]:
    """For one expert count and `top_k`. It always forms the contrast; a runtime that inlines it drops what nobody reads."""
    experts, top_k = site.shapes["gate_up"][0], site.attributes["top_k"]
    # [experts, rows, hidden]; every expert's weights are read once, for all rows
    gate_up, down = b.add("Transpose", "gate_up", perm=[0, 2, 1]), b.add("Transpose", "down", perm=[0, 2, 1])
    both = b.add("MatMul", b.add("Unsqueeze", "x", b.constant([0])), gate_up)
    gate, up = b.add_many("Split", both, outputs=2, axis=-1, num_outputs=2)
    silu = b.add("Mul", gate, b.add("Sigmoid", gate))
    outputs = b.add("MatMul", b.add("Mul", silu, up), down)
    # weights [rows, experts]
    routing, contrast_logits = b.add_many("Split", "router_logits", b.constant([experts, 2]), outputs=2, axis=-1)
    if top_k < experts:
        best, index = b.add_many("TopK", routing, b.constant([top_k]), outputs=2, axis=-1)
        lowest = b.add("Constant", value=helper.make_tensor("lowest", site.type, [], [-65504.0]))
        none = b.add("Expand", lowest, b.add("Shape", routing))
        routing = b.add("ScatterElements", none, index, best, axis=-1)
    weights = b.add("Transpose", b.add("Softmax", routing, axis=-1), perm=[1, 0])
    weighted = b.add("Mul", b.add("Unsqueeze", weights, b.constant([-1])), outputs)
    primary = b.add("ReduceSum", weighted, b.constant([0]), keepdims=0)
    # contrast: p0 * E0 - p1 * E1, its sign turned where the second logit is not below the first
    share0, share1 = b.add_many("Split", b.add("Softmax", contrast_logits, axis=-1), outputs=2, axis=-1, num_outputs=2)
    logit0, logit1 = b.add_many("Split", contrast_logits, outputs=2, axis=-1, num_outputs=2)
    expert0, expert1 = (b.add("Gather", outputs, b.constant(n), axis=0) for n in (0, 1))
    difference = b.add("Sub", b.add("Mul", share0, expert0), b.add("Mul", share1, expert1))
    first_wins = b.add("Greater", logit0, logit1)
    return primary, b.add("Where", first_wins, difference, b.add("Neg", difference))


def _example(random: np.random.Generator) -> Example:
    experts, rows, hidden, inner = 3, 5, 24, 20
    inputs = {
        "x": random.standard_normal((rows, hidden)),
        "router_logits": random.standard_normal((rows, experts + 2)),
        "gate_up": random.standard_normal((experts, 2 * inner, hidden)) / 5,
        "down": random.standard_normal((experts, hidden, inner)) / 5,
    }
    return Example({name: value.astype(np.float32) for name, value in inputs.items()}, {"top_k": 2, "contrast": 1})


def _eager(x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor, top_k: int, contrast: int, **_: str) -> Any:
    return expert_dispatch(x, router_logits, gate_up, down, top_k, bool(contrast))


OPERATORS = (
    Operator(
        name=NAME,
        doc="A mixture of SwiGLU experts with a contrast output (arXiv 2502.06282).",
        inputs=(
            Operand("x", "T", "[rows, hidden]"),
            Operand("router_logits", "T", "[rows, experts + 2]"),
            Operand("gate_up", "T", "[experts, 2 * inner, hidden]"),
            Operand("down", "T", "[experts, hidden, inner]"),
        ),
        outputs=(Operand("primary", "T", "[rows, hidden]"), Operand("contrast", "T", "[rows, hidden]")),
        attributes={
            "top_k": Attribute("int", "experts used for a row"),
            "contrast": Attribute("int", "1 to compute the second output"),
            "plugin_namespace": Attribute("string", "for TensorRT", DOMAIN),
            "plugin_version": Attribute("string", "for TensorRT", str(VERSION)),
        },
        eager=_eager,
        body=_body,
        by_site=True,
        translation=(torch.ops.jakiro.expert_dispatch.default, _translation),
        tensorrt_plugin=True,
        example=_example,
    ),
)
