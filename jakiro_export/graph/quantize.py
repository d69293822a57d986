"""Row-by-row int8: products with constant weights in integers, in standard operators.

Weights are quantised once, an output channel at a time; activations in the graph, a row at a time, so that a row's result does
not depend on the rows beside it (per-tensor scales would: speculative and plain decoding would then differ). Integer sums are
exact in any order, and what is left around them works element by element: a bitwise engine stays bitwise.

Both operands are unsigned with zero point 128. Signed weights would do, but processors with AVX2 and no VNNI multiply unsigned by
signed bytes with saturation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from jakiro_export.graph.passes import add_initializer, drop_unused_initializers, lazy
from jakiro_export.weights import Transposed, Weight

_ZERO = 128
_LEAST = 2.0**-100  # a row of zeros is divided by this


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


def _scales(rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(rows).max(1), np.float32(_LEAST)) / np.float32(127)


def quantize_products(model: ir.Model) -> int:
    """Every product of a float32 activation with a constant matrix becomes one of bytes; how many there were."""
    graph, count = model.graph, 0
    activations: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for node in list(graph):
        channels = _channels(node)
        if channels is None or channels.dtype != np.float32 or len(channels.shape) != 2:
            continue
        data, matrix = node.inputs[0], node.inputs[1]
        assert data is not None
        assert matrix is not None
        nodes: list[ir.Node] = []
        if data not in activations:
            activations[data] = _quantized_rows(model, data, nodes)
        rows, scale = activations[data]
        zero = _constant(model, "zero_point", np.array(_ZERO, np.uint8))
        bytes_ = add_initializer(model, f"{matrix.name}.bytes", Transposed(Channels(channels)))
        scales = add_initializer(model, f"{matrix.name}.scales", ChannelScales(channels))
        product = _append(nodes, "MatMulInteger", rows, bytes_, zero, zero)
        real = _append(nodes, "Cast", product, attributes={"to": ir.DataType.FLOAT})
        by_row = _append(nodes, "Mul", real, scale)
        result = _append(nodes, "Mul", by_row, scales)
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            result = _append(nodes, "Add", result, node.inputs[2])
        graph.insert_before(node, nodes)
        output = node.outputs[0]
        result.shape, result.type = output.shape, output.type
        if output in graph.outputs:
            raise NotImplementedError("a product that is an output of the graph")
        output.replace_all_uses_with(result)
        graph.remove(node, safe=True)
        count += 1
    drop_unused_initializers(model)
    common.NameFixPass()(model)
    return count


def _channels(node: ir.Node) -> Weight | None:
    """The constant matrix [out, in] a node multiplies by; None where there is none."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    weight, turned = lazy(node.inputs[1]), node.attributes.get_int("transB", 0) if node.op_type == "Gemm" else 0
    if turned:
        return weight
    return weight.weight if isinstance(weight, Transposed) else None


def _quantized_rows(model: ir.Model, data: ir.Value, nodes: list[ir.Node]) -> tuple[ir.Value, ir.Value]:
    """Rows as bytes around 128, and the scale of each row; one quantisation for every product of the same rows."""
    axis = _constant(model, "last_axis", np.array([-1], np.int64))
    least = _constant(model, "least_magnitude", np.array(_LEAST, np.float32))
    full = _constant(model, "byte_range", np.array(127, np.float32))
    zero = _constant(model, "zero_point_float", np.array(_ZERO, np.float32))
    size = _append(nodes, "ReduceMax", _append(nodes, "Abs", data), axis, attributes={"keepdims": 1})
    scale = _append(nodes, "Div", _append(nodes, "Max", size, least), full)
    steps = _append(nodes, "Round", _append(nodes, "Div", data, scale))
    rows = _append(nodes, "Cast", _append(nodes, "Add", steps, zero), attributes={"to": ir.DataType.UINT8})
    return rows, scale


def _append(nodes: list[ir.Node], kind: str, *inputs: ir.Value, attributes: dict[str, object] | None = None) -> ir.Value:
    node = ir.node(kind, list(inputs), attributes=attributes)  # type: ignore[arg-type]
    nodes.append(node)
    return node.outputs[0]


def _constant(model: ir.Model, name: str, value: np.ndarray) -> ir.Value:
    existing = model.graph.initializers.get(name)
    if existing is not None:
        return existing
    tensor = ir.Tensor(value, name=name)
    made = ir.Value(name=name, shape=ir.Shape(value.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(made)
    return made
