"""The two graphs of an engine, from their plans: traced without weights, weights bound as recipes, passes run."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from jakiro_export.artifact.weights import Array, Weight
from jakiro_export.heads.model import DraftModel
from jakiro_export.passes import pipeline
from jakiro_export.plan import DraftPlan, TargetPlan
from jakiro_export.quantization.recipe import DRAFT_PROJECTION
from jakiro_export.targets.graph import TargetGraph
from jakiro_export.targets.models import build_meta
from jakiro_export.targets.trace import trace as trace_target
from jakiro_export.targets.weights import target_weights
from jakiro_export.tracing import torch_dtype, trace
from jakiro_runtime import contract


def target_graph(plan: TargetPlan, metadata: Mapping[str, str]) -> ir.Model:
    """The target's graph with its weights as recipes."""
    dtype, checkpoint = plan.precision.activations, plan.checkpoint
    graph = TargetGraph(build_meta(checkpoint.config, torch_dtype(dtype)), plan.attention, plan.context, plan.feature_layers)
    traced = trace_target(graph, plan.opset)
    weights = target_weights(checkpoint, graph, traced.graph.initializers, dtype)
    pipeline.prepare(traced, weights, contract.TARGET, metadata, plan.recipe, graph.projection)
    return traced


def draft_graph(plan: DraftPlan, metadata: Mapping[str, str]) -> ir.Model:
    """The draft phase's graph with its weights as recipes."""
    kind = torch_dtype(plan.precision.activations)
    with torch.device("meta"):
        model = draft_model(plan).to(kind)
    config = plan.head.config
    sizes = (config.kv_heads, config.head_dim, plan.target.config.hidden_size, plan.tree.shape.nodes)
    traced = trace(model, contract.draft(*sizes, plan.feature_layers, config.layers), kind, kind, plan.opset)
    pipeline.prepare(traced, draft_weights(plan), contract.DRAFT, metadata, plan.recipe, {DRAFT_PROJECTION})
    return traced


def draft_model(plan: DraftPlan) -> DraftModel:
    """The draft phase as a torch module with empty parameters."""
    return plan.head.model(plan.tree, plan.draft_vocab, plan.attention, plan.opset)


def draft_weights(plan: DraftPlan) -> dict[str, Weight]:
    """The recipes of its parameters and buffers, by name."""
    head, dtype = plan.head, plan.precision.activations
    weights = {
        **head.layer_weights(dtype),
        **head.vocabulary_weights(plan.target, dtype, plan.token_map),
        **{name: Array(value) for name, value in plan.tree.constants().items()},
    }
    if plan.token_map is not None:
        weights["token_map"] = Array(plan.token_map)
    return weights
