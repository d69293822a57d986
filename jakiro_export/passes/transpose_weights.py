"""Weights that a graph transposes are written transposed."""

from __future__ import annotations

import onnx_ir as ir

from jakiro_export.artifact.weights import Transposed
from jakiro_export.passes.editing import add_initializer, drop_unused_initializers, lazy_weight


def transpose_weights(model: ir.Model) -> None:
    """A Linear's weight, transposed in the graph, becomes one that is written transposed."""
    for node in list(model.graph):
        weight = lazy_weight(node.inputs[0]) if node.op_type == "Transpose" else None
        if weight is None or len(weight.shape) != 2:
            continue
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        transposed = add_initializer(model, f"{source.name}.T", Transposed(weight))
        output.replace_all_uses_with(transposed)
        model.graph.remove(node, safe=True)
    drop_unused_initializers(model)
