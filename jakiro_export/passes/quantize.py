"""Products with constant weights, quantised row by row: one operator each with a body in standard operators.

    RowInt8MatMul, RowInt4MatMul(x [..., in], weights, ...) -> [..., out]      see `graph.int8`, `graph.int4`

and forms of them: with a norm or SwiGlu before the product, with a residual behind it. Weights are quantised once; activations in
the operator, a row at a time, so that a row's result does not depend on the rows beside it (per-tensor scales would: speculative
and plain decoding would then differ). Integer sums are exact in any order, and what is left around them works element by element:
a bitwise engine stays bitwise.
"""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common

from jakiro_export.artifact.weights import Reshaped, Stacked, Transposed, Weight
from jakiro_export.ops import DOMAIN, selection
from jakiro_export.ops import expert_dispatch as dispatch
from jakiro_export.ops.body import Body
from jakiro_export.passes import fuse
from jakiro_export.passes.simplify import add_initializer, drop_unused_initializers, lazy
from jakiro_export.quantization import int4, int8

NORM, ADD = "Norm", "Add"
_FORMATS: dict[str, ModuleType] = {each.NAME: each for each in (int8, int4)}
FORMS = tuple(
    before + name + behind
    for name in _FORMATS
    for before, behind in (("", ""), ("", ADD), (NORM, ""), (fuse.SWIGLU, ""), (fuse.SWIGLU, ADD))
)


def quantize_products(model: ir.Model, precision: str, in_bytes: Collection[str] = ()) -> None:
    """Every product of a float32 activation with a constant matrix becomes one of bytes or less, where its sizes can be tiled.

    precision: "int8" or "int4"
    in_bytes: names of weights that are kept in bytes anyway
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == dispatch.NAME and _quantize_experts(model, node):
            continue
        channels = _channels(node)
        if channels is None or channels.dtype != np.float32 or len(channels.shape) != 2:
            continue
        if not int8.fits(channels.shape):
            continue  # a router's few outputs
        data, matrix, output = node.inputs[0], node.inputs[1], node.outputs[0]
        assert data is not None
        assert matrix is not None
        if output in graph.outputs:
            raise NotImplementedError("a product that is an output of the graph")
        small = precision == "int4" and int4.fits(channels.shape) and str(matrix.name).removesuffix(".T") not in in_bytes
        nodes = [_product(model, data, channels, str(matrix.name), int4 if small else int8)]
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes.append(ir.node("Add", [nodes[0].outputs[0], node.inputs[2]]))
        graph.insert_before(node, nodes)
        result = nodes[-1].outputs[0]
        result.shape, result.type = output.shape, output.type
        output.replace_all_uses_with(result)
        graph.remove(node, safe=True)
    absorb(model)
    drop_unused_initializers(model)
    common.NameFixPass()(model)


def _product(model: ir.Model, data: ir.Value, channels: Weight, name: str, form: ModuleType) -> ir.Node:
    weights = [add_initializer(model, each, weight) for each, weight in form.initializers(channels, name).items()]
    return ir.node(form.NAME, [data, *weights], domain=DOMAIN)


def _quantize_experts(model: ir.Model, node: ir.Node) -> bool:
    """A mixture of two experts, both used for every row, becomes products of bytes and what is between them. Whether it did."""
    x, router_logits, *matrices = node.inputs
    gate_up, down = (lazy(matrix) for matrix in matrices)
    assert x is not None
    assert router_logits is not None
    assert isinstance(gate_up, Reshaped)
    assert isinstance(down, Reshaped)
    assert isinstance(down.weight, Stacked)
    experts, width, hidden = gate_up.shape
    if experts != 2 or node.attributes.get_int("top_k") != experts or hidden % int8.LANES or width % (2 * int8.LANES):
        return False
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> list[ir.Value]:
        nodes.append(ir.node(op, list(inputs), attributes=attributes, num_outputs=outputs))
        return list(nodes[-1].outputs)

    def product(data: ir.Value, channels: Weight, name: str) -> ir.Value:
        nodes.append(_product(model, data, channels, name, int8))
        return nodes[-1].outputs[0]

    # one product for the gates and ups of all experts, which have one input
    names = [str(matrix.name) for matrix in matrices if matrix is not None]
    both = product(x, Reshaped(gate_up.weight, (experts * width, hidden)), names[0])
    inner = add("Split", both, outputs=experts, axis=-1, num_outputs=experts)
    results = []
    for expert, weight in enumerate(down.weight.parts):
        nodes.append(ir.node(fuse.SWIGLU, [inner[expert]], domain=DOMAIN))
        results.append(product(nodes[-1].outputs[0], weight, f"{names[1]}.{expert}"))
    nodes.append(ir.node(selection.MIX_EXPERTS, [router_logits, *results], domain=DOMAIN, num_outputs=2))
    made = nodes[-1].outputs
    model.graph.insert_before(node, nodes)
    for output, new in zip(node.outputs, made, strict=False):
        new.shape, new.type = output.shape, output.type
        output.replace_all_uses_with(new)
    model.graph.remove(node, safe=True)
    return True


def _channels(node: ir.Node) -> Weight | None:
    """The constant matrix [out, in] a node multiplies by; None where there is none."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    weight, turned = lazy(node.inputs[1]), node.attributes.get_int("transB", 0) if node.op_type == "Gemm" else 0
    if turned:
        return weight
    return weight.weight if isinstance(weight, Transposed) else None


def _format(name: str) -> ModuleType:
    return next(form for each, form in _FORMATS.items() if each in name)


def _signature(name: str) -> dict[str, str]:
    """The inputs of a form of an operator, and their types."""
    inputs = dict(_format(name).INPUTS)
    if name.startswith(NORM):
        inputs["gain"] = "tensor(float)"
    if name.endswith(ADD):
        inputs["residual"] = "tensor(float)"
    return inputs


def _schema(name: str) -> onnx.defs.OpSchema:
    schema = onnx.defs.OpSchema
    return schema(
        name,
        DOMAIN,
        1,
        doc="Rows, quantised one by one, times a matrix in bytes or less.",
        inputs=[schema.FormalParameter(each, kind) for each, kind in _signature(name).items()],
        outputs=[schema.FormalParameter("y", "tensor(float)")],
        attributes=[schema.Attribute("epsilon", schema.AttrType.FLOAT, "of the norm")] if name.startswith(NORM) else [],
    )


for each in FORMS:
    if not onnx.defs.has(each, DOMAIN):
        onnx.defs.register_schema(_schema(each))


def functions(opset: int) -> list[onnx.FunctionProto]:
    """The operators' forms in standard ONNX operators; a norm before the product needs opset 23."""
    return [_function(name, opset) for name in FORMS if opset >= 23 or not name.startswith(NORM)]


def _function(name: str, opset: int) -> onnx.FunctionProto:
    body, x = Body(), "x"
    if name.startswith(NORM):
        x = body.add("RMSNormalization", ["x", "gain"], "normed")
        body.nodes[-1].attribute.append(
            onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=onnx.AttributeProto.FLOAT)
        )
    elif name.startswith(fuse.SWIGLU):
        body.nodes += fuse.swiglu_body("x", "gated")
        x = "gated"
    result = _format(name).body(body, x)
    if name.endswith(ADD):
        body.add("Add", [result, "residual"], "y")
    else:
        body.nodes[-1].output[0] = "y"
    attributes = ["epsilon"] if name.startswith(NORM) else []
    inputs, opsets = list(_signature(name)), [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, name, inputs, ["y"], body.nodes, opsets, attributes)


def absorb(model: ir.Model) -> None:
    """Norms and SwiGlu before a product and the residual behind it join it: with few rows, starting them is their cost."""
    for node in list(model.graph):
        if node.op_type not in _FORMATS:
            continue
        data, output = node.inputs[0], node.outputs[0]
        assert data is not None
        before = data.producer() if len(list(data.uses())) == 1 and not data.is_graph_output() else None
        inputs, attributes, prefix, suffix = list(node.inputs), {}, "", ""
        if before is not None and before.op_type == fuse.SWIGLU:
            prefix, inputs[0] = fuse.SWIGLU, before.inputs[0]
        elif before is not None and _is_norm_of_rows(before):
            prefix, inputs = NORM, [before.inputs[0], *inputs[1:], before.inputs[1]]
            attributes["epsilon"] = before.attributes.get_float("epsilon", 1e-5)
        place, sum_ = node, fuse.only_use(output, "Add")
        residual = next((each for each in sum_.inputs if each is not output), None) if sum_ is not None else None
        if prefix != NORM and sum_ is not None and residual is not None and _same_shape(residual, output):
            suffix, place, inputs = ADD, sum_, [*inputs, residual]
        if prefix or suffix:
            made = ir.node(prefix + node.op_type + suffix, inputs, attributes=attributes, domain=DOMAIN)
            model.graph.insert_before(place, [made])
            fuse.take_over(place.outputs[0], made.outputs[0])
    common.RemoveUnusedNodesPass()(model)


def _is_norm_of_rows(node: ir.Node) -> bool:
    gain = node.inputs[1] if node.op_type == "RMSNormalization" else None
    return gain is not None and gain.shape is not None and len(gain.shape) == 1 and node.attributes.get_int("axis", -1) == -1


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and len(one.shape) > 1 and one.shape == other.shape
