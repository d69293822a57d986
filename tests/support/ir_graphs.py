"""Small graphs written as text, their weights as recipes, for tests of passes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common

from jakiro_export.artifact.weights import Array, LazyWeight, Weight
from jakiro_export.ops import registry


def parse(text: str, opset: int = 23, **weights: Weight | np.ndarray) -> ir.Model:
    """The graph of a text in onnx's own syntax, "g (inputs) => (outputs) { nodes }".

    weights: inputs of these names become initializers
    """
    header = f'<ir_version: 10, opset_import: ["": {opset}, "jakiro": 1]>'
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(header + text)))
    for value in list(model.graph.inputs):
        weight = weights.get(str(value.name))
        if weight is not None:
            model.graph.inputs.remove(value)
            recipe = Array(weight) if isinstance(weight, np.ndarray) else weight
            value.const_value = LazyWeight(recipe, str(value.name))
            value.shape, value.dtype = value.const_value.shape, value.const_value.dtype
            model.graph.register_initializer(value)
    return model


def operators(model: ir.Model) -> list[str]:
    """The operators of a graph in order."""
    common.TopologicalSortPass()(model)
    return [node.op_type for node in model.graph]


def run(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime computes, operators by their bodies."""
    proto = ir.to_proto(model)
    del proto.functions[:]
    proto.functions.extend(registry.bodies(model))
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # as the runtime does
    found: list[np.ndarray] = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, inputs
    )
    return found
