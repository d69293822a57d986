"""The two graphs of an engine, from a target and a head: traced without weights, bound to recipes, simplified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from jakiro_export.artifact.weights import Array, Picked, Reshaped, Stacked, Stored, Transposed, Weight
from jakiro_export.checkpoints.head import HeadCheckpoint
from jakiro_export.checkpoints.target import Target
from jakiro_export.heads import jakiro as draft
from jakiro_export.heads import jakiro_star as star
from jakiro_export.passes import pipeline
from jakiro_export.quantization.recipe import RECIPES
from jakiro_export.targets import graph as target

QUANTIZED = tuple(RECIPES)
# what activations are computed in; quantised engines keep everything but their matmuls in fp32
_TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, **dict.fromkeys(QUANTIZED, torch.float32)}
_NUMPY = {name: np.dtype(ml_dtypes.bfloat16 if name == "bf16" else str(kind)[6:]) for name, kind in _TORCH.items()}


@dataclass(frozen=True)
class GraphOptions:
    """How the graphs are written.

    precision: "fp32", "fp16" or "bf16", weights and activations; "int8", "int4": matmuls row by row (see
        `jakiro_export.ops.row_matmul`)
    draft_precision: the same for the draft graph, which is never int4
    bitwise: make every sum that depends on where a token sits exact (see `jakiro_export.ops.attention`)
    opset: 20 writes norms and rotary embeddings as primitives; 23 and later as single operators
    draft_vocab: how many tokens the head may propose; None for all
    """

    precision: str
    draft_precision: str
    bitwise: bool
    opset: int
    shape: draft.TreeShape
    draft_vocab: int | None


def target_graph(checkpoint: Target, options: GraphOptions, metadata: Mapping[str, str]) -> ir.Model:
    """The target's graph with its weights as recipes."""
    model = target.build_meta(checkpoint.config, _TORCH[options.precision])
    # a tied or wrapped parameter has several names; the first one is the checkpoint's
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    buffers, projection = target.computed_buffers(model), model.get_output_embeddings().weight  # type: ignore[operator]
    form: target.Form = "bitwise" if options.bitwise else "numerical"
    if options.precision in QUANTIZED:
        form = "operator"  # exact, and the fastest
    traced = target.trace(model, options.opset, form)
    dtype = _NUMPY[options.precision]
    weights: dict[str, Weight] = {
        f"model.{name}": Stored(checkpoint.store, checkpoint.tensor_name(names[id(tensor)]), dtype)
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if f"model.{name}" in traced.graph.initializers
    }
    weights.update({f"model.{name}": Array(value.numpy()) for name, value in buffers.items()})
    logits = {f"model.{name}" for name, tensor in model.named_parameters(remove_duplicate=False) if tensor is projection}
    pipeline.prepare(traced, weights, "target", metadata, RECIPES.get(options.precision), logits)
    return traced


def draft_token_map(head: HeadCheckpoint, draft_vocab: int | None) -> np.ndarray | None:
    """The tokens a reduced projection keeps, ascending [draft_vocab]; None where it keeps all.

    The head's checkpoint may say how often each token occurs. Where it does not, low token numbers are kept: byte-pair
    vocabularies are numbered in the order of their merges, which is nearly the order of frequency.
    """
    if draft_vocab is None or draft_vocab >= head.config.vocab:
        return None
    order = head.token_order if head.token_order is not None else np.arange(head.config.vocab)
    if len(order) < draft_vocab:
        order = np.concatenate([order, np.setdiff1d(np.arange(head.config.vocab), order)])
    return np.sort(order[:draft_vocab]).astype(np.int64)


def draft_weights(head: HeadCheckpoint, checkpoint: Target, options: GraphOptions) -> dict[str, Weight]:
    """The recipes of a draft graph's parameters, by their name in `graph.draft.DraftGraph`."""
    dtype = _NUMPY[options.draft_precision]

    def of(name: str) -> Stored:
        return Stored(head.store, name, dtype)

    config, layer = head.config, "layers.0."
    experts = [f"{layer}mlp_moe.experts.{n}." for n in range(config.experts)]
    weights: dict[str, Weight] = {
        "head.fc.weight": of("fc.weight"),
        "head.o_proj.weight": of(f"{layer}self_attn.o_proj.weight"),
        "head.router.weight": of(f"{layer}mlp_moe.gate.weight"),
        "head.norm": of(f"{layer}post_attention_layernorm.weight"),
    }
    if config.star:
        widths = {"in": ("fc", config.hidden, config.inner), "out": ("proj", config.inner, config.hidden)}
        if config.third:
            widths["third"] = ("fc1", config.hidden, config.hidden)
        for part, (name, inputs, outputs) in widths.items():
            matrices = Stacked(tuple(Transposed(of(f"{base}{name}.weight")) for base in experts))
            weights[f"head.expert_{part}"] = Reshaped(matrices, (config.experts, inputs, outputs))
        weights.update({name: Array(value) for name, value in star.constants().items()})
    else:
        gate_up = Stacked(tuple(of(f"{base}{kind}_proj.weight") for base in experts for kind in ("gate", "up")))
        down = Stacked(tuple(of(f"{base}down_proj.weight") for base in experts))
        weights["head.gate_up"] = Reshaped(gate_up, (config.experts, 2 * config.inner, config.hidden))
        weights["head.down"] = Reshaped(down, (config.experts, config.hidden, config.inner))
    if config.fc_bias:
        weights["head.fc.bias"] = of("fc.bias")
    for name in ("q", "k", "v"):
        weights[f"head.{name}_proj.weight"] = of(f"{layer}self_attn.{name}_proj.weight")
        if config.qkv_bias:
            weights[f"head.{name}_proj.bias"] = of(f"{layer}self_attn.{name}_proj.bias")
    embedding = checkpoint.tensor_name("model.embed_tokens.weight")
    tied = bool(getattr(checkpoint.config, "tie_word_embeddings", False))
    projection = embedding if tied else checkpoint.tensor_name("lm_head.weight")
    weights["embedding"] = Stored(checkpoint.store, embedding, dtype)
    token_map = draft_token_map(head, options.draft_vocab)
    if token_map is None:
        weights["projection"] = Stored(checkpoint.store, projection, dtype)
    else:
        weights["projection"] = Picked(checkpoint.store, projection, dtype, token_map)
        weights["token_map"] = Array(token_map)
    return weights


def draft_graph(head: HeadCheckpoint, checkpoint: Target, options: GraphOptions, metadata: Mapping[str, str]) -> ir.Model:
    """The draft phase's graph with its weights as recipes."""
    dtype = _TORCH[options.draft_precision]
    with torch.device("meta"):
        module = draft_module(head, options).to(dtype)
    traced = draft.trace(module, options.opset, dtype)
    weights = draft_weights(head, checkpoint, options)
    weights["head.rotary.inv_freq"] = Array(draft.LlamaRotaryEmbedding(head.config.llama).inv_freq.numpy())
    pipeline.prepare(traced, weights, "draft", metadata, RECIPES.get(options.draft_precision), {"projection"})
    return traced


def tree_shape(head: HeadCheckpoint, options: GraphOptions) -> draft.TreeShape:
    """The shape of the tree: the user's, or Jakiro*'s own."""
    return star.SHAPE if head.config.star else options.shape


def draft_module(head: HeadCheckpoint, options: GraphOptions) -> draft.Phase:
    """The draft phase as a torch module, its parameters empty."""
    token_map = draft_token_map(head, options.draft_vocab)
    size = len(token_map) if token_map is not None else None
    made: draft.Phase
    if head.config.star:
        made = star.StarGraph(star.StarHead(head.config, options.opset >= 23), size)
    else:
        made = draft.DraftGraph(draft.Head(head.config, options.opset >= 23), options.shape, size)
    made.head.one_operator = options.draft_precision == "int8"
    return made
