"""A model of one operator, with its body or without, and its results in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from jakiro_export.ops import DOMAIN
from jakiro_export.ops.operator import CallSite, Example, Operator

TYPES = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}


def call_site(operator: Operator, example: Example, opset: int) -> CallSite:
    """Where the one node of `one_node` calls its operator."""
    kind = helper.np_dtype_to_tensor_dtype(next(iter(example.inputs.values())).dtype)
    defaults = {name: each.default for name, each in operator.attributes.items() if each.default is not None}
    shapes = {name: value.shape for name, value in example.inputs.items()}
    return CallSite(opset, kind, shapes, {**defaults, **example.attributes})


def one_node(operator: Operator, example: Example, opset: int = 23, body: onnx.FunctionProto | None = None) -> onnx.ModelProto:
    """A model whose graph is one node of the operator; inputs of the example's types, their axes free.

    body: in the place of the operator's; an empty one for none
    """
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in example.inputs.items()}
    first = next(iter(kinds.values()))
    results = eager(operator, example)
    outputs = [
        helper.make_tensor_value_info(each.name, TYPES.get(each.type, first), [None] * result.ndim)
        for each, result in zip(operator.outputs, results, strict=True)
    ]
    names = [each.name for each in operator.outputs]
    node = helper.make_node(operator.name, list(example.inputs), names, domain=operator.domain, **example.attributes)
    inputs = [helper.make_tensor_value_info(name, kinds[name], [None] * value.ndim) for name, value in example.inputs.items()]
    graph = helper.make_graph([node], "one", inputs, outputs)
    if body is None and operator.body is not None:
        body = operator.function(call_site(operator, example, opset))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    functions = [body] if body is not None and body.name else []
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def session(model: onnx.ModelProto, library: Path | None = None) -> ort.InferenceSession:
    """The model in ONNX Runtime, with a library of kernels where one is given."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def eager(operator: Operator, example: Example) -> list[np.ndarray]:
    """The results of the operator's form in torch."""
    found = operator.eager(*(torch.from_numpy(value) for value in example.inputs.values()), **example.attributes)
    return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]


def run(operator: Operator, example: Example, opset: int = 23) -> list[np.ndarray]:
    """The results of the operator's body."""
    found: list[np.ndarray] = session(one_node(operator, example, opset)).run(None, example.inputs)
    return found
