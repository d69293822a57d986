"""The order of the passes, from a traced graph to the one that is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from jakiro_export.artifact.weights import Weight
from jakiro_export.passes.bind import bind
from jakiro_export.passes.constant_shapes import constant_shapes
from jakiro_export.passes.finish import finish
from jakiro_export.passes.fuse_into_matmuls import fuse_into_matmuls
from jakiro_export.passes.fuse_layers import fuse_layers
from jakiro_export.passes.fuse_projections import fuse_projections
from jakiro_export.passes.quantize_experts import quantize_experts
from jakiro_export.passes.quantize_matmuls import quantize_matmuls
from jakiro_export.passes.simplify import fold_constants, remove_duplicates
from jakiro_export.passes.transpose_weights import transpose_weights
from jakiro_export.quantization.recipe import Recipe


def prepare(
    model: ir.Model,
    weights: Mapping[str, Weight],
    name: str,
    metadata: Mapping[str, str],
    recipe: Recipe | None = None,
    logits: Collection[str] = (),
) -> None:
    """Make of a traced graph the one that is written, in place.

    Args:
        weights: recipes of its initializers, by name
        name: the graph's name
        metadata: written into the model; `jakiro_version` becomes the producer's version
        recipe: which matrices are quantised, and how; None for none
        logits: the names of the projection to logits, for the recipe

    Raises:
        ExportError: a weight is missing or has another shape, or an operator has no body in the graph's opset.
    """
    bind(model, weights)
    transpose_weights(model)
    fold_constants(model)
    constant_shapes(model)
    remove_duplicates(model)
    fuse_projections(model)
    if recipe is not None and recipe.gpu:
        quantize_experts(model, recipe)
        quantize_matmuls(model, recipe, logits)
    elif recipe is not None:
        fuse_layers(model)
        quantize_experts(model, recipe)
        quantize_matmuls(model, recipe, logits)
        fuse_into_matmuls(model)
    finish(model, name, metadata)
