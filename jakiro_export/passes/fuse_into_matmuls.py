"""Prologues and epilogues of row matmuls: a norm or SwiGlu before a product and the residual after it join it."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from jakiro_export.ops import DOMAIN, row_int4_matmul, row_int8_matmul, swiglu
from jakiro_export.ops.row_matmul import ADD, NORM, SWIGLU
from jakiro_export.passes.editing import only_consumer, replace

_MATMULS = (row_int8_matmul.NAME, row_int4_matmul.NAME)


def fuse_into_matmuls(model: ir.Model) -> None:
    """Replace a row matmul and what only it reads, or what alone reads it, by the operator's form for them."""
    for node in list(model.graph):
        if node.op_type not in _MATMULS:
            continue
        data, output = node.inputs[0], node.outputs[0]
        assert data is not None
        before = data.producer() if len(list(data.uses())) == 1 and not data.is_graph_output() else None
        inputs, attributes, prologue, epilogue = list(node.inputs), {}, "", ""
        if before is not None and before.op_type == swiglu.NAME:
            prologue, inputs[0] = SWIGLU, before.inputs[0]
        elif before is not None and _is_norm_of_rows(before):
            prologue, inputs = NORM, [before.inputs[0], *inputs[1:], before.inputs[1]]
            attributes["epsilon"] = before.attributes.get_float("epsilon", 1e-5)
        place, sum_ = node, only_consumer(output, "Add")
        residual = next((each for each in sum_.inputs if each is not output), None) if sum_ is not None else None
        if prologue != NORM and sum_ is not None and residual is not None and _same_shape(residual, output):
            epilogue, place, inputs = ADD, sum_, [*inputs, residual]
        if prologue or epilogue:
            made = ir.node(prologue + node.op_type + epilogue, inputs, attributes=attributes, domain=DOMAIN)
            model.graph.insert_before(place, [made])
            replace(place.outputs[0], made.outputs[0])
    common.RemoveUnusedNodesPass()(model)
    common.NameFixPass()(model)


def _is_norm_of_rows(node: ir.Node) -> bool:
    gain = node.inputs[1] if node.op_type == "RMSNormalization" else None
    return gain is not None and gain.shape is not None and len(gain.shape) == 1 and node.attributes.get_int("axis", -1) == -1


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and len(one.shape) > 1 and one.shape == other.shape
