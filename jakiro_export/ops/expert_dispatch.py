"""Expert dispatch: the mixture inside the head as one ONNX operator with a body in standard operators.

    ExpertDispatch(x [rows, hidden], router_logits [rows, experts + 2],
                   gate_up [experts, 2 * inner, hidden], down [experts, hidden, inner])
        -> primary [rows, hidden], contrast [rows, hidden]

The first `experts` router logits choose and weigh the experts (softmax over the best `top_k`, ties to the lower index); the
last two weigh experts 0 and 1 against each other in the contrast output (arXiv 2502.06282, section 3). ONNX Runtime inlines
the body; a TensorRT plugin of the same name replaces it.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor

from jakiro_export.ops import DOMAIN

NAME = "ExpertDispatch"
VERSION = 1


def _schema() -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    attribute, parameter = schema.Attribute, schema.FormalParameter
    return schema(
        NAME,
        DOMAIN,
        VERSION,
        doc="A mixture of SwiGLU experts with a contrast output (arXiv 2502.06282).",
        inputs=[parameter(name, "T") for name in ("x", "router_logits", "gate_up", "down")],
        outputs=[parameter(name, "T") for name in ("primary", "contrast")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "activations and weights")],
        attributes=[
            attribute("top_k", onnx.defs.OpSchema.AttrType.INT, "experts used for a row"),
            attribute("contrast", onnx.defs.OpSchema.AttrType.INT, "1 to compute the second output"),
            attribute("plugin_namespace", helper.make_attribute("plugin_namespace", DOMAIN), "for TensorRT"),
            attribute("plugin_version", helper.make_attribute("plugin_version", str(VERSION)), "for TensorRT"),
        ],
    )


if not onnx.defs.has(NAME, DOMAIN):
    onnx.defs.register_schema(_schema())


def reference(
    x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor, top_k: int, contrast: bool
) -> tuple[Tensor, Tensor]:
    """The operator in eager torch. Shapes as in the module's docstring.

    With `contrast` off nobody may read the second output; here it is zero.
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


def function(experts: int, top_k: int, opset: int, dtype: int) -> onnx.FunctionProto:
    """The operator's body in standard ONNX operators, for one expert count and element type.

    It always computes the contrast output; a runtime that inlines it drops what nobody reads.

    Args:
        dtype: an onnx.TensorProto element type, the activations' type
    """
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        nodes.append(helper.make_node(op, inputs, outputs, **attributes))

    def ints(name: str, *values: int) -> str:
        add("Constant", [], [name], value_ints=list(values))
        return name

    # outputs [experts, rows, hidden]; every expert's weights are read once, for all rows
    add("Transpose", ["gate_up"], ["gate_up_t"], perm=[0, 2, 1])
    add("Transpose", ["down"], ["down_t"], perm=[0, 2, 1])
    add("Unsqueeze", ["x", ints("axis0", 0)], ["x3"])
    add("MatMul", ["x3", "gate_up_t"], ["both"])
    add("Split", ["both"], ["gate", "up"], axis=-1, num_outputs=2)
    add("Sigmoid", ["gate"], ["gate_sigmoid"])
    add("Mul", ["gate", "gate_sigmoid"], ["gate_silu"])
    add("Mul", ["gate_silu", "up"], ["inner"])
    add("MatMul", ["inner", "down_t"], ["outputs"])
    # weights [rows, experts]
    add("Split", ["router_logits", ints("split", experts, 2)], ["routing", "contrast_logits"], axis=-1)
    if top_k < experts:
        add("TopK", ["routing", ints("k", top_k)], ["best", "best_index"], axis=-1)
        add("Constant", [], ["lowest"], value=helper.make_tensor("lowest", dtype, [], [-65504.0]))
        add("Shape", ["routing"], ["routing_shape"])
        add("Expand", ["lowest", "routing_shape"], ["nothing"])
        add("ScatterElements", ["nothing", "best_index", "best"], ["kept"], axis=-1)
        add("Softmax", ["kept"], ["weights"], axis=-1)
    else:
        add("Softmax", ["routing"], ["weights"], axis=-1)
    add("Transpose", ["weights"], ["weights_t"], perm=[1, 0])
    add("Unsqueeze", ["weights_t", ints("last", -1)], ["weights3"])
    add("Mul", ["weights3", "outputs"], ["weighted"])
    add("ReduceSum", ["weighted", "axis0"], ["primary"], keepdims=0)
    # contrast: p0 * E0 - p1 * E1, its sign turned where the second logit is not below the first
    add("Softmax", ["contrast_logits"], ["share"], axis=-1)
    add("Split", ["share"], ["share0", "share1"], axis=-1, num_outputs=2)
    add("Split", ["contrast_logits"], ["logit0", "logit1"], axis=-1, num_outputs=2)
    add("Constant", [], ["first"], value_int=0)
    add("Constant", [], ["second"], value_int=1)
    add("Gather", ["outputs", "first"], ["expert0"], axis=0)
    add("Gather", ["outputs", "second"], ["expert1"], axis=0)
    add("Mul", ["share0", "expert0"], ["left"])
    add("Mul", ["share1", "expert1"], ["right"])
    add("Sub", ["left", "right"], ["difference"])
    add("Neg", ["difference"], ["negated"])
    add("Greater", ["logit0", "logit1"], ["first_wins"])
    add("Where", ["first_wins", "difference", "negated"], ["contrast"])
    return helper.make_function(
        DOMAIN,
        NAME,
        inputs=["x", "router_logits", "gate_up", "down"],
        outputs=["primary", "contrast"],
        nodes=nodes,
        opset_imports=[helper.make_opsetid("", opset)],
        attributes=["top_k", "contrast", "plugin_namespace", "plugin_version"],
    )
