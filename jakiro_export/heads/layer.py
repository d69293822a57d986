"""The layer that all these heads share: fc over (embedding, feature), attention without a norm before it, a norm."""

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
from jakiro_export.ops.rotary import fused_rotary
from jakiro_export.ops.selection import FUSED, PRIMITIVE
from jakiro_export.ops.tree_attention import fused_tree_attention
from jakiro_export.precisions import AttentionImpl

LAYER = "layers.0."  # of published tensor names
EXPERTS = f"{LAYER}mlp_moe."


@dataclass(frozen=True, kw_only=True)
class LayerConfig(HeadConfig):
    """The sizes of the shared layer. llama: transformers' own reading of `config.json`, for the rotary embedding."""

    fc_bias: bool
    qkv_bias: bool
    norm_eps: float
    llama: LlamaConfig


def read_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LayerConfig` from a head's `config.json`. Raises KeyError for a missing field."""
    heads = int(config["num_attention_heads"])
    return {
        "hidden": int(config["hidden_size"]),
        "heads": heads,
        "kv_heads": int(config.get("num_key_value_heads", heads)),
        "head_dim": int(config.get("head_dim") or config["hidden_size"] // heads),
        "vocab": int(config["vocab_size"]),
        "fc_bias": bool(config.get("bias", True)),
        "qkv_bias": bool(config.get("qkv_bias", False)),
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "llama": LlamaConfig(**{key: value for key, value in config.items() if key not in ("architectures", "dtype")}),
    }


def two_experts(config: Mapping[str, Any]) -> int:
    """The number of experts that a head's `config.json` names. Raises ExportError for another than two."""
    experts = int(config.get("num_local_experts", 2))
    if experts != 2:
        raise ExportError(f"The head has {experts} experts; the published gate weighs exactly two against each other.")
    return experts


def layer_shapes(c: LayerConfig, experts: dict[str, Shape]) -> dict[str, Shape]:
    """The layer's tensors and their shapes, those of its experts where a checkpoint has them."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes: dict[str, Shape] = {"fc.weight": (c.hidden, 2 * c.hidden)}
    if c.fc_bias:
        shapes["fc.bias"] = (c.hidden,)
    for name, width in (("q", q), ("k", kv), ("v", kv)):
        shapes[f"{LAYER}self_attn.{name}_proj.weight"] = (width, c.hidden)
        if c.qkv_bias:
            shapes[f"{LAYER}self_attn.{name}_proj.bias"] = (width,)
    shapes[f"{LAYER}self_attn.o_proj.weight"] = (c.hidden, q)
    return {**shapes, **experts, f"{LAYER}post_attention_layernorm.weight": (c.hidden,)}


def layer_weights(c: LayerConfig, stored: Callable[[str], Stored]) -> dict[str, Weight]:
    """The recipes of the parameters of a `DraftLayer`, by their name in a `DraftModel`."""
    weights: dict[str, Weight] = {
        "head.fc.weight": stored("fc.weight"),
        "head.o_proj.weight": stored(f"{LAYER}self_attn.o_proj.weight"),
        "head.norm": stored(f"{LAYER}post_attention_layernorm.weight"),
        "head.rotary.inv_freq": Array(LlamaRotaryEmbedding(c.llama).inv_freq.numpy()),
    }
    if c.fc_bias:
        weights["head.fc.bias"] = stored("fc.bias")
    for name in ("q", "k", "v"):
        weights[f"head.{name}_proj.weight"] = stored(f"{LAYER}self_attn.{name}_proj.weight")
        if c.qkv_bias:
            weights[f"head.{name}_proj.bias"] = stored(f"{LAYER}self_attn.{name}_proj.bias")
    return weights


class DraftLayer(nn.Module):
    """The layer up to its experts.

    Args:
        attention: "numerical", or "fused": one operator for attention (`ops.tree_attention`) and for each step of the tree's
            selection (`ops.selection`)
        opset: from 23 on, norms and rotary embeddings are single operators
    """

    def __init__(self, config: LayerConfig, attention: AttentionImpl, opset: int) -> None:
        super().__init__()
        c, self.config = config, config
        self.fused_attention, self.fused_norms = attention == "fused", opset >= 23
        self.selection = FUSED if self.fused_attention else PRIMITIVE
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.fc = nn.Linear(2 * c.hidden, c.hidden, bias=c.fc_bias)
        self.q_proj = nn.Linear(c.hidden, q, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden, kv, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden, kv, bias=c.qkv_bias)
        self.o_proj = nn.Linear(q, c.hidden, bias=False)
        self.norm = nn.Parameter(torch.empty(c.hidden))
        self.rotary = LlamaRotaryEmbedding(c.llama)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.config.head_dim)).transpose(1, 2)

    def project(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, heads, rows, head_dim], keys and values [batch, kv_heads, ...] of inputs [batch, rows, hidden]."""
        angles = position_ids[:, :, None].float() * self.rotary.inv_freq.float()
        scaling = self.rotary.attention_scaling
        cos, sin = ((each if scaling == 1 else each * scaling).to(x.dtype) for each in (angles.cos(), angles.sin()))
        rotate, kv = fused_rotary if self.fused_norms else _rotary, self.config.kv_heads
        query, key = self._heads(self.q_proj(x), self.config.heads), self._heads(self.k_proj(x), kv)
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
        """Inputs [batch, rows, hidden] after attention, and the same normed, [batch * rows, hidden]."""
        x = x + self.o_proj(self._attention(query, segments))
        return x, (fused_rms_norm if self.fused_norms else rms_norm)(x, self.norm, self.config.norm_eps).flatten(0, 1)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (torch.cat([each, each], -1)[:, None] for each in (cos, sin))
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin
