"""Weights of a traced graph, by the names of the module's parameters."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from jakiro_export.artifact.weights import LazyWeight, Weight
from jakiro_export.errors import ExportError


def bind(model: ir.Model, weights: Mapping[str, Weight]) -> None:
    """Give every initializer of a traced graph its recipe, by name.

    Raises:
        ExportError: an initializer has no recipe, or one of another shape.
    """
    for name, value in model.graph.initializers.items():
        weight = weights.get(name)
        if weight is None:
            raise ExportError(f"The graph needs a tensor {name} that the checkpoint does not provide.")
        if tuple(value.shape or ()) != weight.shape:
            raise ExportError(
                f"Tensor {name} has shape {list(weight.shape)} in the checkpoint; its configuration asks for "
                f"{list(value.shape or ())}."
            )
        value.const_value = LazyWeight(weight, name)
        value.dtype = value.const_value.dtype
