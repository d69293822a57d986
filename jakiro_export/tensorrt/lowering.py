"""Norms and rotary embeddings in primitive operators, for parsers that do not know opset 23's.

A graph is exported once, with `RMSNormalization` and `RotaryEmbedding`; TensorRT's parser has them from 10.15 on, JetPack 6 has
10.3 and JetPack 7 has 10.13. What is written here computes the same: the norm's square and mean in float32 whatever the graph's
type is, because the square of a half overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from jakiro_export.errors import ExportError
from jakiro_export.tensorrt import fp4

OPSET, BLOCKED_OPSET = 20, 21  # 21 where weights are dequantised in blocks
IR_VERSION = 10


class _Writer:
    """Nodes and constants for one model, under names of their own."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, list[NodeProto]()
        self._types = {each.name: each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.value_info)}
        self._types.update((each.name, each.data_type) for each in model.graph.initializer)
        self._shared: dict[tuple[str, ...], str] = {}
        self._count = 0

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """A node; its outputs' names."""
        self._count += 1
        names = [f"lowered.{self._count}.{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def once(self, kind: str, *inputs: str) -> str:
        """A node that those before may have made already."""
        key = (kind, *inputs)
        if key not in self._shared:
            self._shared[key] = self.add(kind, *inputs)[0]
        return self._shared[key]

    def constant(self, name: str, values: np.ndarray) -> str:
        """A constant of the model, once for each name."""
        full = f"lowered.{name}"
        if (full,) not in self._shared:
            self.model.graph.initializer.append(numpy_helper.from_array(values, full))
            self._shared[full,] = full
        return full

    def type_of(self, node: NodeProto) -> int:
        """The element type that a node computes in: that of its weight, or what shape inference found."""
        for name in (*node.input[1:], *node.output, node.input[0]):
            if name in self._types:
                return self._types[name]
        raise ExportError(f"The graph does not say what type {node.op_type} {node.name} computes in; export the engine again.")

    def name_output(self, name: str) -> None:
        """The last node's output is the one that the lowered node had."""
        self.nodes[-1].output[0] = name


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _norm(write: _Writer, node: NodeProto) -> None:
    """weight * T(x / sqrt(mean(x^2) + epsilon)), all but the last product in float32."""
    given = _attributes(node)
    if given.get("axis", -1) != -1 or given.get("stash_type", 1) != TensorProto.FLOAT:
        raise ExportError(f"{node.op_type} {node.name} is not over the last axis in float32; export the engine again.")
    x, weight = node.input
    kind = write.type_of(node)
    if kind != TensorProto.FLOAT:
        (x,) = write.add("Cast", x, to=TensorProto.FLOAT)
    (square,) = write.add("Mul", x, x)
    (mean,) = write.add("ReduceMean", square, write.constant("last_axis", np.array([-1], np.int64)), keepdims=1)
    epsilon = np.float32(given.get("epsilon", 1e-5))
    (above,) = write.add("Add", mean, write.constant(f"epsilon.{epsilon:g}", np.array(epsilon)))
    (root,) = write.add("Sqrt", above)
    (normed,) = write.add("Div", x, root)
    if kind != TensorProto.FLOAT:
        (normed,) = write.add("Cast", normed, to=kind)
    write.add("Mul", normed, weight)
    write.name_output(node.output[0])


def _rotary(write: _Writer, node: NodeProto) -> None:
    """[left * cos - right * sin, right * cos + left * sin] of x [batch, heads, rows, head_dim]."""
    given = _attributes(node)
    if given.get("interleaved", 0) or given.get("rotary_embedding_dim", 0) or len(node.input) != 3:
        raise ExportError(f"{node.op_type} {node.name} is not of whole halves; export the engine again.")
    x, cos, sin = node.input
    left, right = write.add("Split", x, outputs=2, axis=-1, num_outputs=2)
    heads = write.constant("head_axis", np.array([1], np.int64))
    cos, sin = write.once("Unsqueeze", cos, heads), write.once("Unsqueeze", sin, heads)

    def turned(kind: str, a: str, b: str) -> str:
        return write.add(kind, write.add("Mul", a, cos)[0], write.add("Mul", b, sin)[0])[0]

    write.add("Concat", turned("Sub", left, right), turned("Add", right, left), axis=-1)
    write.name_output(node.output[0])


_LOWERED: dict[str, Callable[[_Writer, NodeProto], None]] = {"RMSNormalization": _norm, "RotaryEmbedding": _rotary}


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in operators of opset 20 (21 with blocked weights, 23 with four-bit floats); changed in place.

    Raises:
        ExportError: a norm or a rotary embedding is none of those that this exporter writes
    """
    write = _Writer(model)
    for node in model.graph.node:
        lowered = _LOWERED.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if lowered is None:
            write.nodes.append(node)
        else:
            lowered(write, node)
    nodes = list(write.nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    opset = fp4.OPSET if _four_bit_floats(model) else BLOCKED_OPSET if any(_blocked(node) for node in nodes) else OPSET
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, opset)
    model.ir_version = min(model.ir_version, fp4.IR_VERSION if opset == fp4.OPSET else IR_VERSION)
    return model


def _four_bit_floats(model: onnx.ModelProto) -> bool:
    return any(weight.data_type == TensorProto.FLOAT4E2M1 for weight in model.graph.initializer)


def _blocked(node: NodeProto) -> bool:
    return node.op_type == "DequantizeLinear" and any(each.name == "block_size" and each.i for each in node.attribute)
