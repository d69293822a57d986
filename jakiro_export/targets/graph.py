"""The target's graph: transformers' own modelling code, its attention and its cache replaced through the public hooks.

Nothing of the model is written here. The model is built on the meta device, so tracing it costs no memory; its weights are bound
by name afterwards (`passes.bind`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, Cache, PreTrainedConfig

from jakiro_export.errors import ExportError
from jakiro_export.ops import registry
from jakiro_export.ops.attention import KVSegment as Part
from jakiro_export.ops.attention import additive_mask, attention, cached_values, past_mask, tile_groups
from jakiro_export.ops.rms_norm import fused_rms_norm
from jakiro_export.ops.rotary import fused_rotary
from jakiro_export.ops.tree_attention import fused_tree_attention
from jakiro_export.targets import repeat

ATTENTION = "jakiro_two_part"
# How attention is written: with sums in any order, with exact sums, or as one operator (`ops.tree_attention`)
Form = Literal["numerical", "bitwise", "operator"]
KNOWN_TO_WORK = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class ReadOnlyCache(Cache):
    """A cache that is only read: `update` keeps this call's rows aside and returns them alone.

    The attention function finds the past beside them, by layer, and who sees whom: `past_length` and `visible` for attention in
    one operator, `past_mask` otherwise.
    """

    def __init__(
        self,
        past_keys: list[Tensor],
        past_values: list[Tensor],
        past_mask: Tensor,
        past_length: Tensor,
        visible: Tensor,
        form: Form,
    ) -> None:
        super().__init__(layers=[])
        self.past_keys, self.past_values, self.past_mask = past_keys, past_values, past_mask
        self.past_length, self.visible, self.form = past_length, visible, form
        self.new_keys: list[Tensor] = [None] * len(past_keys)  # type: ignore[list-item]
        self.new_values: list[Tensor] = [None] * len(past_keys)  # type: ignore[list-item]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.new_keys[layer_idx] = key_states
        self.new_values[layer_idx] = cached_values(value_states, self.form == "bitwise")
        return key_states, self.new_values[layer_idx]


class _SelectRows(nn.Module):
    """Stands before the output projection: keeps the features, projects only the rows asked for."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.logit_rows: Tensor | None = None
        self.features: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        assert self.logit_rows is not None
        self.features = hidden_states  # [batch, rows, hidden]
        batch, selected = self.logit_rows.shape
        index = self.logit_rows[:, :, None].expand(-1, -1, hidden_states.shape[-1])
        # two axes only: the projection becomes Gemm over the matrix as stored, which a tied embedding shares
        picked = torch.gather(hidden_states, 1, index).flatten(0, 1)
        return self.head(picked).unflatten(0, (batch, selected))  # [batch, selected, vocab]


class TargetGraph(nn.Module):
    """The target under the graph contract: ids, positions, tree mask and cache in; logits, features and new rows out."""

    def __init__(self, model: nn.Module, form: Form) -> None:
        super().__init__()
        config: Any = model.config
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.form = form
        self.select = _SelectRows(model.get_output_embeddings())  # type: ignore[operator]
        model.set_output_embeddings(self.select)  # type: ignore[operator]
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        tree_mask: Tensor,
        past_length: Tensor,
        logit_rows: Tensor,
        past_keys: list[Tensor],
        past_values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Shapes as in the contract: ids and positions [batch, rows], tree_mask [batch, rows, rows], caches
        [batch, kv_heads, capacity, head_dim] a layer. Returns logits, next_tokens, hidden_states, new keys, new values.
        """
        dtype = past_keys[0].dtype
        filled = past_mask(past_keys[0], past_length, dtype)
        new_mask = tile_groups(additive_mask(tree_mask, dtype), self.groups)
        cache = ReadOnlyCache(past_keys, past_values, filled, past_length, tree_mask, self.form)
        self.select.logit_rows = logit_rows
        with _attention_over(cache):
            logits = self.model(
                input_ids=input_ids,
                attention_mask=new_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            ).logits
        if logits.dtype == torch.bfloat16:
            logits = logits.float()  # the runtime's sampler has no bfloat16
        features = self.select.features
        assert features is not None
        return (logits, logits.argmax(-1), features, *cache.new_keys, *cache.new_values)


_current: list[ReadOnlyCache] = []


@contextmanager
def _attention_over(cache: ReadOnlyCache) -> Iterator[None]:
    _current.append(cache)
    try:
        yield
    finally:
        _current.pop()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; `key` and `value` are what `ReadOnlyCache.update` returned."""
    if softcap is not None or s_aux is not None:
        raise ExportError("This target's attention caps its scores or adds sinks, which the exporter does not support.")
    cache, layer = _current[-1], module.layer_idx
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if cache.form == "operator":
        past = cache.past_keys[layer], cache.past_values[layer]  # type: ignore[index]
        return fused_tree_attention(query, *past, key, value, cache.past_length, cache.visible, scale), None
    parts = (
        Part(cache.past_keys[layer], cache.past_values[layer], cache.past_mask),  # type: ignore[index]
        Part(key, value, attention_mask),
    )
    return attention(query, parts, scale, cache.form == "bitwise").transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)


def build_meta(config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The target without weights, on the meta device.

    Raises:
        ExportError: transformers has no causal model for this configuration, or its attention cannot be replaced.
    """
    names = getattr(config, "architectures", None) or [config.model_type]
    try:
        with torch.device("meta"):
            # a copy: transformers notes the attention in the configuration it is given
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=ATTENTION, dtype=dtype)
    except (ValueError, KeyError, AttributeError) as error:
        raise ExportError(
            f"The target's architecture {names[0]} is not one this exporter can trace ({error}); "
            f"known to work: {', '.join(KNOWN_TO_WORK)}."
        ) from error
    return model.eval()


def computed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The values of buffers that no checkpoint holds (rotary frequencies), computed on the CPU, by full name.

    Raises:
        ExportError: a buffer that this exporter does not know how to compute.
    """
    values = {}
    for prefix, module in model.named_modules():
        names = [name for name in module._buffers if name in module._non_persistent_buffers_set]
        if not names:
            continue
        if not type(module).__name__.endswith("RotaryEmbedding"):
            raise ExportError(f"The target computes a buffer in {type(module).__name__}, which this exporter cannot.")
        real = type(module)(config=module.config)
        kind = getattr(module, "rope_type", "default")
        if kind in ("dynamic", "longrope"):
            raise ExportError(f"Rotary scaling {kind!r} depends on the length at run time, which a graph cannot follow.")
        values.update({f"{prefix}.{name}": real._buffers[name] for name in names if real._buffers[name] is not None})
    return values


@contextmanager
def fused_operators(model: nn.Module, opset: int) -> Iterator[None]:
    """While tracing, write norms and rotary embeddings as the single operators that opset 23 has for them.

    A module is replaced only where it computes what the operator computes, which is tried on random numbers first.
    """
    if opset < 23:
        yield
        return
    undo: list[tuple[Any, str, Any]] = []
    for module in list(model.modules()):
        if type(module).__name__.endswith("RMSNorm") and _is_plain_rms_norm(type(module)):
            undo.append((module, "forward", module.__dict__.get("forward")))
            module.forward = _RmsNormOperator(module)
    for source in {sys.modules[type(module).__module__] for module in model.modules()}:
        rotate = getattr(source, "apply_rotary_pos_emb", None)
        if rotate is not None and _is_plain_rotary(rotate):
            undo.append((source, "apply_rotary_pos_emb", rotate))
            source.apply_rotary_pos_emb = _rotary_operator  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for owner, name, value in undo:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


class _RmsNormOperator:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.epsilon = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))

    def __call__(self, x: Tensor) -> Tensor:
        return fused_rms_norm(x, self.module.weight, self.epsilon)


def _rotary_operator(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    half = cos.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    return fused_rotary(q, cos, sin), fused_rotary(k, cos, sin)


@torch.no_grad()
def _is_plain_rms_norm(kind: type) -> bool:
    try:
        norm = kind(8, eps=1e-5)
    except TypeError:
        return False
    weight = norm._parameters.get("weight")
    if weight is None or len(norm._parameters) != 1:
        return False
    weight.copy_(torch.linspace(0.5, 2, 8))
    x = torch.linspace(-3, 4, 24).reshape(3, 8)
    plain = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight
    return torch.allclose(norm(x), plain, atol=1e-5)


@torch.no_grad()
def _is_plain_rotary(rotate: Any) -> bool:
    q, angle = torch.linspace(-2, 2, 48).reshape(1, 2, 3, 8), torch.linspace(0, 3, 12).reshape(1, 3, 4)
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    left, right = q[..., :4], q[..., 4:]
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    plain = torch.cat([left * c - right * s, right * c + left * s], -1)
    try:
        return torch.allclose(rotate(q, q, cos, sin)[0], plain, atol=1e-5)
    except (TypeError, RuntimeError, IndexError):
        return False


def trace(model: nn.Module, opset: int, form: Form) -> ir.Model:
    """The target's ONNX graph, without weight values: initializers carry the parameters' names.

    Returns:
        the contract's inputs, outputs and axis names. Layers that differ in nothing but their weights are traced once.
    """
    graph = TargetGraph(model, form)
    config: Any = model.config
    found, count = repeat.layer_list(model), config.num_hidden_layers
    if found is None or count <= repeat.TRACED or not repeat.are_alike(found[1]):
        return _trace(graph, opset)
    short = build_meta(repeat.shortened(config), next(model.parameters()).dtype)
    traced = _trace(TargetGraph(short, form), opset)
    repeat.repeat_last_layer(traced, f"model.{found[0]}", count)
    return traced


def _trace(graph: TargetGraph, opset: int) -> ir.Model:
    graph.eval()
    model: Any = graph.model
    config = model.config
    layers, kv_heads = config.num_hidden_layers, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = next(model.parameters()).dtype
    values = torch.float64 if graph.form == "bitwise" else dtype

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    caches = [[empty(2, kv_heads, 16, head_dim, dtype=kind) for _ in range(layers)] for kind in (dtype, values)]
    arguments = (empty(2, 3), empty(2, 3), empty(2, 3, 3, dtype=torch.bool), empty(2), empty(2, 4), *caches)
    batch, rows = torch.export.Dim("batch"), torch.export.Dim("rows")
    capacity, selected = torch.export.Dim("capacity"), torch.export.Dim("selected")
    cache = [{0: batch, 2: capacity}] * layers
    shapes = (
        {0: batch, 1: rows},
        {0: batch, 1: rows},
        {0: batch, 1: rows, 2: rows},
        {0: batch},
        {0: batch, 1: selected},
        cache,
        cache,
    )
    per_layer = range(layers)
    with fused_operators(graph.model, opset), torch.no_grad():
        program = torch.onnx.export(
            graph,
            arguments,
            dynamo=True,
            optimize=False,
            verbose=False,
            custom_translation_table=registry.translations(),
            opset_version=opset,
            dynamic_shapes=shapes,
            input_names=[
                *("input_ids", "position_ids", "tree_mask", "past_length", "logit_rows"),
                *(f"past_key.{n}" for n in per_layer),
                *(f"past_value.{n}" for n in per_layer),
            ],
            output_names=[
                *("logits", "next_tokens", "hidden_states"),
                *(f"new_key.{n}" for n in per_layer),
                *(f"new_value.{n}" for n in per_layer),
            ],
        )
    assert program is not None
    return program.model
