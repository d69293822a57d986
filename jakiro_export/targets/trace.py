"""The target's ONNX graph: traced through the hooks, one layer copied for all where all are alike."""

from __future__ import annotations

import onnx_ir as ir
import torch

from jakiro_export.errors import ExportError
from jakiro_export.targets import layers
from jakiro_export.targets.families import LISTED, architecture, sizes
from jakiro_export.targets.fused import fused_operators
from jakiro_export.targets.graph import TargetGraph
from jakiro_export.targets.models import build_meta
from jakiro_export.tracing import trace as trace_module
from jakiro_runtime import contract


def trace(graph: TargetGraph, opset: int) -> ir.Model:
    """The graph of a model on the meta device, without weight values: initializers carry the parameters' names.

    Layers that differ in nothing but their weights are traced once.
    """
    found, count = layers.layer_list(graph.model), graph.config.num_hidden_layers
    if found is None or count <= layers.TRACED or not layers.are_alike(found[1]):
        return trace_all_layers(graph, opset)
    # any layer stands for those that the head reads until all are there
    stand_in = (0,) if graph.feature_layers else ()
    short = TargetGraph(build_meta(layers.shortened(graph.config), graph.dtype), graph.impl, graph.context, stand_in)
    traced = trace_all_layers(short, opset)
    layers.repeat_last_layer(traced, f"model.{found[0]}", count, graph.feature_layers)
    return traced


def trace_all_layers(graph: TargetGraph, opset: int) -> ir.Model:
    """As `trace`, every layer by itself."""
    values = torch.float64 if graph.impl == "bitwise" else graph.dtype
    with fused_operators(graph.model, opset):
        try:
            return trace_module(graph, contract.target(*sizes(graph.config), graph.feature_layers), graph.dtype, values, opset)
        except Exception as error:  # torch wraps what happened in errors of its own
            refused = _cause(error, ExportError)
            if refused is not None:
                raise refused from None
            raise ExportError(
                f"The target's architecture {architecture(graph.config)} cannot be traced ({_reason(error)}); {LISTED}."
            ) from error


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, the first cause last."""
    found: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in found:
        found.append(step)
        step = step.__cause__ or step.__context__
    return found


def _cause(error: BaseException, kind: type[ExportError]) -> ExportError | None:
    return next((each for each in _causes(error) if isinstance(each, kind)), None)


def _reason(error: BaseException) -> str:
    """The first cause in one line."""
    first = _causes(error)[-1]
    return f"{type(first).__name__}: {(str(first).strip() or 'no reason given').splitlines()[0][:200]}"
