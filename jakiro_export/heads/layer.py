"""The layer that all these heads share: attention over cache and tree, and a norm after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jakiro_export.artifact.weights import Array, Stored, Weight
from jakiro_export.errors import ExportError
from jakiro_export.heads.config import HeadConfig, Shape
from jakiro_export.ops.attention import KVSegment, additive_mask, attention, past_mask, tile_groups
from jakiro_export.ops.rms_norm import fused_rms_norm, rms_norm
from jakiro_export.ops.rotary import check_rotary, fused_rotary
from jakiro_export.ops.selection import FUSED, PRIMITIVE
from jakiro_export.ops.tree_attention import fused_tree_attention
from jakiro_export.precisions import AttentionImpl

LAYER = "layers.0."  # of published tensor names
EXPERTS = f"{LAYER}mlp_moe."


@dataclass(frozen=True, kw_only=True)
class LayerConfig(HeadConfig):
    """The sizes of the shared layer, and of the fc before it, which makes its rows.

    qk_norm: queries and keys are normed, each head by itself
    llama: transformers' own reading of `config.json`, for the rotary embedding
    """

    fc_bias: bool
    qkv_bias: bool
    o_bias: bool = False
    qk_norm: bool = False
    norm_eps: float
    llama: LlamaConfig

    @property
    def fc_inputs(self) -> int:
        """Width of what the fc reads: here an embedding and a feature."""
        return 2 * self.hidden


def read_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LayerConfig` from a head's `config.json`.

    Raises:
        KeyError: a field is missing
        ExportError: its rotary embedding is of a kind that a graph cannot hold
    """
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    given = {key: value for key, value in config.items() if key not in ("architectures", "dtype")}
    llama = LlamaConfig(**{**given, "hidden_size": heads * head_dim})  # which need not be the head's own
    check_rotary(llama, "head")
    return {
        "hidden": int(config["hidden_size"]),
        "heads": heads,
        "kv_heads": int(config.get("num_key_value_heads", heads)),
        "head_dim": head_dim,
        "vocab": int(config["vocab_size"]),
        "fc_bias": bool(config.get("bias", True)),
        "qkv_bias": bool(config.get("qkv_bias", False)),
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "llama": llama,
    }


def two_experts(config: Mapping[str, Any]) -> int:
    """The number of experts that a head's `config.json` names. Raises ExportError for another than two."""
    experts = int(config.get("num_local_experts", 2))
    if experts != 2:
        raise ExportError(f"The head has {experts} experts; the published gate weighs exactly two against each other.")
    return experts


def fc_shapes(c: LayerConfig) -> dict[str, Shape]:
    """The fc's tensors and their shapes."""
    return {"fc.weight": (c.hidden, c.fc_inputs), **({"fc.bias": (c.hidden,)} if c.fc_bias else {})}


def attention_shapes(c: LayerConfig, prefix: str, inputs: int) -> dict[str, Shape]:
    """A layer's tensors up to its MLP or experts, whose queries, keys and values read rows of `inputs` numbers."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes: dict[str, Shape] = {}
    for name, width in (("q", q), ("k", kv), ("v", kv)):
        shapes[f"{prefix}self_attn.{name}_proj.weight"] = (width, inputs)
        if c.qkv_bias:
            shapes[f"{prefix}self_attn.{name}_proj.bias"] = (width,)
    shapes[f"{prefix}self_attn.o_proj.weight"] = (c.hidden, q)
    if c.o_bias:
        shapes[f"{prefix}self_attn.o_proj.bias"] = (c.hidden,)
    if c.qk_norm:
        shapes[f"{prefix}self_attn.q_norm.weight"] = shapes[f"{prefix}self_attn.k_norm.weight"] = (c.head_dim,)
    return {**shapes, f"{prefix}post_attention_layernorm.weight": (c.hidden,)}


def layer_shapes(c: LayerConfig, experts: dict[str, Shape]) -> dict[str, Shape]:
    """The tensors of fc and layer and their shapes, `experts` being those of the layer's experts or MLP."""
    return {**fc_shapes(c), **attention_shapes(c, LAYER, c.hidden), **experts}


def attention_weights(c: LayerConfig, stored: Callable[[str], Stored], prefix: str, place: str) -> dict[str, Weight]:
    """The recipes of a layer's parameters up to its MLP or experts.

    Args:
        prefix: of the published names
        place: of the layer in a `DraftModel`: "head." for the last one, "lower.0." and so on for those before it
    """
    names = [name.removeprefix(prefix) for name in attention_shapes(c, prefix, c.hidden)]
    weights: dict[str, Weight] = {
        f"{place}{name.removeprefix('self_attn.')}": stored(f"{prefix}{name}")
        for name in names
        if name != "post_attention_layernorm.weight" and "_norm." not in name
    }
    weights[f"{place}norm"] = stored(f"{prefix}post_attention_layernorm.weight")
    if c.qk_norm:
        weights.update({f"{place}{name}_norm": stored(f"{prefix}self_attn.{name}_norm.weight") for name in ("q", "k")})
    return {**weights, f"{place}rotary.inv_freq": Array(LlamaRotaryEmbedding(c.llama).inv_freq.numpy())}


def layer_weights(c: LayerConfig, stored: Callable[[str], Stored]) -> dict[str, Weight]:
    """The recipes of the parameters of fc and `DraftLayer`, by their name in a `DraftModel`."""
    return {**{name: stored(name) for name in fc_shapes(c)}, **attention_weights(c, stored, LAYER, "head.")}


class DraftLayer(nn.Module):
    """The layer up to its experts or MLP.

    A subclass may read its rows in another way: `attention_inputs` is what queries, keys and values are made of, `residual` what
    the attention is added to. Here both are the row itself.

    Args:
        attention: "numerical", or "fused": one operator for attention (`ops.tree_attention`) and for each step of the tree's
            selection (`ops.selection`)
        opset: from 23 on, norms and rotary embeddings are single operators
        inputs: width of `attention_inputs`; None: of a row
    """

    def __init__(self, config: LayerConfig, attention: AttentionImpl, opset: int, inputs: int | None = None) -> None:
        super().__init__()
        c, self.config = config, config
        width = inputs or c.hidden
        self.fused_attention, self.fused_norms = attention == "fused", opset >= 23
        self.selection = FUSED if self.fused_attention else PRIMITIVE
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.q_proj = nn.Linear(width, q, bias=c.qkv_bias)
        self.k_proj = nn.Linear(width, kv, bias=c.qkv_bias)
        self.v_proj = nn.Linear(width, kv, bias=c.qkv_bias)
        self.o_proj = nn.Linear(q, c.hidden, bias=c.o_bias)
        self.norm = nn.Parameter(torch.empty(c.hidden))
        self.q_norm = nn.Parameter(torch.empty(c.head_dim)) if c.qk_norm else None
        self.k_norm = nn.Parameter(torch.empty(c.head_dim)) if c.qk_norm else None
        self.rotary = LlamaRotaryEmbedding(c.llama)

    def attention_inputs(self, x: Tensor) -> Tensor:
        """What queries, keys and values are made of: of rows [batch, rows, ...], [batch, rows, inputs]."""
        return x

    def residual(self, x: Tensor) -> Tensor:
        """What the attention is added to: of rows [batch, rows, ...], [batch, rows, hidden]."""
        return x

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """The RMS norm over the last axis."""
        return (fused_rms_norm if self.fused_norms else rms_norm)(x, weight, self.config.norm_eps)

    def _heads(self, x: Tensor, heads: int, norm: Tensor | None = None) -> Tensor:
        split = x.unflatten(-1, (heads, self.config.head_dim))
        return (split if norm is None else self.normed(split, norm)).transpose(1, 2)

    def project(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, heads, rows, head_dim], keys and values [batch, kv_heads, ...] of rows [batch, rows, ...]."""
        x = self.attention_inputs(x)
        angles = position_ids[:, :, None].float() * self.rotary.inv_freq.float()
        scaling = self.rotary.attention_scaling
        cos, sin = ((each if scaling == 1 else each * scaling).to(x.dtype) for each in (angles.cos(), angles.sin()))
        rotate, kv = fused_rotary if self.fused_norms else _rotary, self.config.kv_heads
        query = self._heads(self.q_proj(x), self.config.heads, self.q_norm)
        key = self._heads(self.k_proj(x), kv, self.k_norm)
        return rotate(query, cos, sin), rotate(key, cos, sin), self._heads(self.v_proj(x), kv)

    def cached(self, key: Tensor, value: Tensor, length: Tensor) -> KVSegment:
        """The cache, [batch, kv_heads, capacity, head_dim], of which each sequence has filled `length` slots, [batch]."""
        if self.fused_attention:
            return KVSegment(key, value, length)
        return KVSegment(key, value, past_mask(key, length, key.dtype))

    def new_rows(self, key: Tensor, value: Tensor, visible: Tensor) -> KVSegment:
        """Rows of the same call, and which of them the queries attend to: [batch, 1 or queries, rows]."""
        if self.fused_attention:
            return KVSegment(key, value, visible)
        mask, groups = additive_mask(visible, key.dtype), self.config.heads // self.config.kv_heads
        return KVSegment(key, value, mask[:, None] if visible.shape[1] == 1 else tile_groups(mask, groups))

    def _attention(self, query: Tensor, segments: list[KVSegment]) -> Tensor:
        """[batch, rows, heads * head_dim]; `segments`: that of `cached`, then those of `new_rows`."""
        scaling = self.config.head_dim**-0.5
        if not self.fused_attention:
            return attention(query, segments, scaling, bitwise=False).transpose(1, 2).flatten(2)
        past, *new = segments
        key, value = torch.cat([each.key for each in new], 2), torch.cat([each.value for each in new], 2)
        visible = torch.cat([each.mask.expand(-1, query.shape[2], -1) for each in new], -1)
        return fused_tree_attention(query, past.key, past.value, key, value, past.mask, visible, scaling).flatten(2)

    def attend(self, x: Tensor, query: Tensor, segments: list[KVSegment]) -> tuple[Tensor, Tensor]:
        """Rows [batch, rows, ...] after attention, [batch, rows, hidden], and the same normed, [batch * rows, hidden]."""
        x = self.residual(x) + self.o_proj(self._attention(query, segments))
        return x, self.normed(x, self.norm).flatten(0, 1)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (torch.cat([each, each], -1)[:, None] for each in (cos, sin))
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin
