"""NVFP4 as TensorRT takes it: standard nodes over FLOAT4E2M1 in place of the operators of `jakiro_export.ops.fp4`.

The weights' bytes stay where they are: two values a byte, the first in the lower bits, is ONNX's own layout of the type.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from jakiro_export.errors import ExportError
from jakiro_export.ops import DEQUANTIZE_FP4, DOMAIN, FP4_BLOCK, FP4_ROW_STEP, ROUND_FP4

OPSET, IR_VERSION = 23, 11  # the first with the type


def has_fp4(model: onnx.ModelProto) -> bool:
    """Whether a graph has NVFP4 weights or activations."""
    return any(node.domain == DOMAIN and node.op_type in (DEQUANTIZE_FP4, ROUND_FP4) for node in model.graph.node)


def standard_fp4(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with standard nodes in place of our own; changed in place.

    Raises:
        ExportError: the graph does not say how wide a matrix or an activation is
    """
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    sizes = _sizes(model, weights)
    nodes: list[NodeProto] = []
    for number, node in enumerate(graph.node):
        if node.domain != DOMAIN or node.op_type not in (DEQUANTIZE_FP4, ROUND_FP4):
            nodes.append(node)
        elif node.op_type == DEQUANTIZE_FP4:
            scales, packed = node.input
            weight = weights[packed]
            if weight.data_type != TensorProto.FLOAT4E2M1:
                weight.data_type = TensorProto.FLOAT4E2M1
                weight.dims[1] *= 2
            nodes.append(helper.make_node("DequantizeLinear", [packed, scales], node.output, axis=0, block_size=FP4_BLOCK))
        else:
            if node.output[0] not in sizes:
                raise ExportError(f"The graph does not say the width and type of {node.output[0]}; export the engine again.")
            nodes += _rounded(model, node, f"fp4.{number}", *sizes[node.output[0]])
    del graph.node[:]
    graph.node.extend(nodes)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, OPSET)
    model.ir_version = max(model.ir_version, IR_VERSION)
    return model


def _sizes(model: onnx.ModelProto, weights: dict[str, TensorProto]) -> dict[str, tuple[int, int]]:
    """(inputs, element type) of each matmul whose activations are rounded, by the rounded value's name."""
    makers = {output: node for node in model.graph.node for output in node.output}
    matrices = {node.output[0]: node for node in model.graph.node if node.op_type == DEQUANTIZE_FP4}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices:
            scales, packed = matrices[node.input[1]].input
            found[node.input[0]] = (weights[packed].dims[0], weights[makers[scales].input[1]].data_type)
    return found


def _rounded(model: onnx.ModelProto, node: NodeProto, name: str, width: int, kind: int) -> list[NodeProto]:
    """Nodes that round rows to NVFP4 as `ops.fp4.round_fp4` does, over rows in one axis: [rows, in]."""
    made: list[NodeProto] = []

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        made.append(helper.make_node(op, list(inputs), [f"{name}.{len(made)}"], **attributes))
        return made[-1].output[0]

    def constant(label: str, values: np.ndarray, to: int | None = None) -> str:
        full = f"fp4.{label}.{to or ''}"
        if not any(each.name == full for each in model.graph.initializer):
            tensor = (
                helper.make_tensor(full, to, values.shape, values.flatten().tolist())
                if to
                else numpy_helper.from_array(values, full)
            )
            model.graph.initializer.append(tensor)
        return full

    x = node.input[0]
    rows = add("Reshape", x, constant(f"rows.{width}", np.array([-1, width], np.int64)))
    blocks = add("Reshape", rows, constant(f"blocks.{width}", np.array([-1, width // FP4_BLOCK, FP4_BLOCK], np.int64)))
    largest = add("ReduceMax", add("Abs", blocks), constant("axis", np.array([-1], np.int64)), keepdims=0)
    wanted = add("Div", largest, constant("largest", np.array(6.0), kind))
    step = constant("step", np.array(FP4_ROW_STEP), kind)
    small = add("QuantizeLinear", wanted, step, constant("zero", np.array(0.0), TensorProto.FLOAT8E4M3FN))
    scales = add("DequantizeLinear", small, step)
    settings = {"axis": 1, "block_size": FP4_BLOCK}
    steps = add("QuantizeLinear", rows, scales, output_dtype=TensorProto.FLOAT4E2M1, **settings)
    values = add("DequantizeLinear", steps, scales, **settings)
    add("Reshape", values, add("Shape", x))
    made[-1].output[0] = node.output[0]
    return made
