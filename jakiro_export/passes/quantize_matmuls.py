"""Matmuls of an activation with a constant matrix, in the scheme that a recipe gives the matrix."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes import common

from jakiro_export.artifact.weights import Transposed, Weight
from jakiro_export.passes.editing import add_initializer, drop_unused_initializers, lazy_weight, replace
from jakiro_export.quantization.recipe import Recipe
from jakiro_export.quantization.scheme import Scheme

_REAL = ("float32", "float16", "bfloat16")


def quantize_matmuls(model: ir.Model, recipe: Recipe, logits: Collection[str] = ()) -> None:
    """Every matmul with a constant matrix for which the recipe has a scheme becomes what the scheme makes of it.

    logits: the names of the projection to logits
    """
    graph = model.graph
    for node in list(graph):
        matrix = _constant_matrix(node)
        if matrix is None or matrix.dtype.name not in _REAL or len(matrix.shape) != 2:
            continue
        data, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
        assert data is not None
        assert weight is not None
        name = str(weight.name)
        scheme = recipe.scheme(name.removesuffix(".T"), matrix.shape, logits)
        if scheme is None:
            continue
        nodes = quantized_matmul(model, scheme, data, matrix, name)
        if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
            nodes.append(ir.node("Add", [nodes[-1].outputs[0], node.inputs[2]]))
        graph.insert_before(node, nodes)
        replace(output, nodes[-1].outputs[0])
        graph.remove(node, safe=True)
    drop_unused_initializers(model)
    common.NameFixPass()(model)


def quantized_matmul(model: ir.Model, scheme: Scheme, data: ir.Value, matrix: Weight, name: str) -> list[ir.Node]:
    """Nodes, not yet in the graph, that multiply data [..., in] with a matrix [out, in] of this name."""
    weights = [add_initializer(model, each, weight) for each, weight in scheme.initializers(matrix, name).items()]
    return scheme.matmul(data, weights)


def _constant_matrix(node: ir.Node) -> Weight | None:
    """The constant matrix [out, in] a node multiplies by; None where there is none."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    weight = lazy_weight(node.inputs[1])
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
        return weight
    return weight.weight if isinstance(weight, Transposed) else None
