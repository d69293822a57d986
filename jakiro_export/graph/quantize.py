"""Row-by-row int8: products with constant weights in bytes, one operator each with a body in standard operators.

    RowInt8MatMul(x [..., in], rotation [block, block], weight [out / 16, in / 4, 16, 4], scales [out]) -> [..., out]

and forms of it: with a norm or SwiGlu before the product, with a residual behind it. Weights are quantised once, an output
channel at a time; activations in the operator, a row at a time, so that a row's result does not depend on the rows beside it
(per-tensor scales would: speculative and plain decoding would then differ). Integer sums are exact in any order, and what is left
around them works element by element: a bitwise engine stays bitwise.

A few entries of an activation are far larger than the rest and would leave the others few steps. So rows are rotated first,
`block` entries at a time, by a Hadamard matrix, which spreads such an entry over its block; the weights were rotated the same way
when they were written, and the product stays what it was.

Both operands of the body are unsigned with zero point 128. Signed weights would do, but processors with AVX2 and no VNNI multiply
unsigned by signed bytes with saturation. The layout of the weights is that of the runtime's kernel (`jakiro_runtime/kernels`);
ONNX Runtime folds the body's transposition when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx_ir.passes import common

from jakiro_export.graph import dispatch, fuse, selection
from jakiro_export.graph.dispatch import DOMAIN
from jakiro_export.graph.passes import add_initializer, drop_unused_initializers, lazy
from jakiro_export.weights import Array, Reshaped, Stacked, Transposed, Weight

NAME = "RowInt8MatMul"
NORM, ADD = "Norm", "Add"
FORMS = (NAME, f"{NAME}{ADD}", f"{NORM}{NAME}", f"{fuse.SWIGLU}{NAME}", f"{fuse.SWIGLU}{NAME}{ADD}")
_ZERO = 128
_LEAST = 2.0**-100  # a row of zeros is divided by this
_LANES, _SIDE = 16, 4  # outputs and inputs that lie side by side


def hadamard(size: int) -> np.ndarray:
    """The normalised Hadamard matrix [size, size] of a power of two: symmetric, and its own inverse."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(size)).astype(np.float32)


def block_of(width: int) -> int:
    """How many entries of a row of `width` are rotated together: the largest power of two that divides it, at most 64."""
    return min(64, width & -width)


@dataclass(frozen=True)
class Rotated:
    """A matrix [out, in] whose rows are rotated as `RowInt8MatMul` rotates activations."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def panels(self) -> Iterator[np.ndarray]:
        block = block_of(self.shape[1])
        for panel in self.weight.panels():
            rows = panel.astype(np.float32)
            yield (rows.reshape(-1, block) @ hadamard(block)).reshape(rows.shape)


@dataclass(frozen=True)
class Channels:
    """A matrix [out, in] in unsigned bytes around 128, each row scaled so that its largest magnitude is 127."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def panels(self) -> Iterator[np.ndarray]:
        for panel in self.weight.panels():
            rows = panel.astype(np.float32)
            yield (np.rint(rows / _scales(rows)[:, None]) + _ZERO).astype(np.uint8)


@dataclass(frozen=True)
class ChannelScales:
    """What each row of `Channels` is multiplied by, [out]."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape[:1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def panels(self) -> Iterator[np.ndarray]:
        for panel in self.weight.panels():
            yield _scales(panel.astype(np.float32))


@dataclass(frozen=True)
class Tiled:
    """A matrix [out, in] as [out / 16, in / 4, 16, 4]: what one instruction multiplies lies side by side."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.weight.shape
        return (rows // _LANES, columns // _SIDE, _LANES, _SIDE)

    @property
    def dtype(self) -> np.dtype:
        return self.weight.dtype

    def panels(self) -> Iterator[np.ndarray]:
        left = np.empty((0, self.weight.shape[1]), self.dtype)
        for panel in self.weight.panels():
            rows = np.concatenate([left, panel])
            whole = len(rows) // _LANES * _LANES
            left = rows[whole:]
            if whole:
                yield rows[:whole].reshape(-1, _LANES, rows.shape[1] // _SIDE, _SIDE).swapaxes(1, 2)


def _scales(rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(rows).max(1), np.float32(_LEAST)) / np.float32(127)


def quantize_products(model: ir.Model) -> None:
    """Every product of a float32 activation with a constant matrix becomes one of bytes, where its sizes can be tiled."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == dispatch.NAME and _quantize_experts(model, node):
            continue
        channels = _channels(node)
        if channels is None or channels.dtype != np.float32 or len(channels.shape) != 2:
            continue
        if channels.shape[0] % _LANES or channels.shape[1] % _SIDE:
            continue  # a router's few outputs
        data, matrix, output = node.inputs[0], node.inputs[1], node.outputs[0]
        assert data is not None
        assert matrix is not None
        if output in graph.outputs:
            raise NotImplementedError("a product that is an output of the graph")
        nodes = [_product(model, data, channels, str(matrix.name))]
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


def _product(model: ir.Model, data: ir.Value, channels: Weight, name: str) -> ir.Node:
    block, rotated = block_of(channels.shape[1]), Rotated(channels)
    inputs = [
        data,
        add_initializer(model, f"rotation_{block}", Array(hadamard(block))),
        add_initializer(model, f"{name}.bytes", Tiled(Channels(rotated))),
        add_initializer(model, f"{name}.scales", ChannelScales(rotated)),
    ]
    return ir.node(NAME, inputs, domain=DOMAIN)


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
    if experts != 2 or node.attributes.get_int("top_k") != experts or hidden % _LANES or width % (2 * _LANES):
        return False
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> list[ir.Value]:
        nodes.append(ir.node(op, list(inputs), attributes=attributes, num_outputs=outputs))
        return list(nodes[-1].outputs)

    def product(data: ir.Value, channels: Weight, name: str) -> ir.Value:
        nodes.append(_product(model, data, channels, name))
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


def _signature(name: str) -> dict[str, str]:
    """The inputs of a form of the operator, and their types."""
    inputs = {"x": "tensor(float)", "rotation": "tensor(float)", "weight": "tensor(uint8)", "scales": "tensor(float)"}
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
        doc="Rows, rotated and quantised one by one, times a matrix in bytes.",
        inputs=[schema.FormalParameter(each, kind) for each, kind in _signature(name).items()],
        outputs=[schema.FormalParameter("y", "tensor(float)")],
        attributes=[schema.Attribute("epsilon", schema.AttrType.FLOAT, "of the norm")] if name.startswith(NORM) else [],
    )


for each in FORMS:
    if not onnx.defs.has(each, DOMAIN):
        onnx.defs.register_schema(_schema(each))


def functions(opset: int) -> list[onnx.FunctionProto]:
    """The operator's forms in standard ONNX operators; a norm before the product needs opset 23."""
    return [_function(name, opset) for name in FORMS if opset >= 23 or not name.startswith(NORM)]


def _function(name: str, opset: int) -> onnx.FunctionProto:
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(name: str, value: Any) -> str:
        return add("Constant", [], name, value=numpy_helper.from_array(np.asarray(value), name))

    x = "x"
    if name.startswith(NORM):
        x = add("RMSNormalization", ["x", "gain"], "normed")
        nodes[-1].attribute.append(onnx.AttributeProto(name="epsilon", ref_attr_name="epsilon", type=onnx.AttributeProto.FLOAT))
    elif name.startswith(fuse.SWIGLU):
        nodes += fuse.swiglu_body("x", "gated")
        x = "gated"
    last, zero = constant("last", np.array([-1], np.int64)), constant("zero", np.array(_ZERO, np.uint8))
    # the rotation, `block` entries of a row at a time
    add("Split", [add("Shape", ["rotation"], "rotation_shape"), constant("halves", np.array([1, 1], np.int64))], "block", axis=0)
    nodes[-1].output.append("block_again")
    add("Concat", [last, "block"], "blocks", axis=0)
    add("MatMul", [add("Reshape", [x, "blocks"], "in_blocks"), "rotation"], "rotated_blocks")
    rotated = add("Reshape", ["rotated_blocks", add("Shape", [x], "shape")], "rotated")
    # rows as bytes around 128, and the scale of each row
    size = add("ReduceMax", [add("Abs", [rotated], "sizes"), last], "size", keepdims=1)
    least = add("Max", [size, constant("least", np.array(_LEAST, np.float32))], "positive")
    scale = add("Div", [least, constant("full", np.array(127, np.float32))], "scale")
    steps = add("Round", [add("Div", [rotated, scale], "in_steps")], "steps")
    around = add("Add", [steps, constant("middle", np.array(_ZERO, np.float32))], "around")
    rows = add("Cast", [around], "rows", to=onnx.TensorProto.UINT8)
    # the weights as a matrix [in, out]
    add("Concat", [last, add("Shape", ["scales"], "outs")], "matrix_shape", axis=0)
    matrix = add("Reshape", [add("Transpose", ["weight"], "turned", perm=[1, 3, 0, 2]), "matrix_shape"], "matrix")
    sums = add("Cast", [add("MatMulInteger", [rows, matrix, zero, zero], "product")], "sums", to=onnx.TensorProto.FLOAT)
    result = "result" if name.endswith(ADD) else "y"
    add("Mul", [add("Mul", [sums, scale], "by_row"), "scales"], result)
    if name.endswith(ADD):
        add("Add", [result, "residual"], "y")
    attributes = ["epsilon"] if name.startswith(NORM) else []
    inputs, opsets = list(_signature(name)), [helper.make_opsetid("", opset)]
    return helper.make_function(DOMAIN, name, inputs, ["y"], nodes, opsets, attributes)


def absorb(model: ir.Model) -> None:
    """Norms and SwiGlu before a product and the residual behind it join it: with few rows, starting them is their cost."""
    for node in list(model.graph):
        if node.op_type != NAME:
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
            made = ir.node(prefix + NAME + suffix, inputs, attributes=attributes, domain=DOMAIN)
            model.graph.insert_before(place, [made])
            fuse.take_over(place.outputs[0], made.outputs[0])
    common.RemoveUnusedNodesPass()(model)


def _is_norm_of_rows(node: ir.Node) -> bool:
    gain = node.inputs[1] if node.op_type == "RMSNormalization" else None
    return gain is not None and gain.shape is not None and len(gain.shape) == 1 and node.attributes.get_int("axis", -1) == -1


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and len(one.shape) > 1 and one.shape == other.shape
