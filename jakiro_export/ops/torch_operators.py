"""Operators that are one node in ONNX but several in torch: defined once, with eager code and their ONNX translation.

In eager torch they compute what the node computes, so that a traced module can also be run and compared. `TRANSLATIONS` is
handed to `torch.onnx.export`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from onnxscript import opset23
from torch import Tensor

from jakiro_export.ops import DOMAIN, selection
from jakiro_export.ops import expert_dispatch as dispatch
from jakiro_export.ops.attention import Part, additive_mask, attention, cached_values, past_mask, tile_groups


@torch.library.custom_op("jakiro::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm over the last axis, in float32, then scaled by `weight`; any shape."""
    normed = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + epsilon)
    return normed.to(x.dtype) * weight


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("jakiro::rotary", mutates_args=())
def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves: x [batch, heads, rows, head_dim]; cos and sin [batch, rows, head_dim / 2]."""
    left, right = x.chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


@rotary.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("jakiro::expert_dispatch", mutates_args=())
def expert_dispatch(
    x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor, top_k: int, contrast: bool
) -> tuple[Tensor, Tensor]:
    """The mixture; see `dispatch.reference` for shapes and arithmetic."""
    return dispatch.reference(x, router_logits, gate_up, down, top_k, contrast)


@expert_dispatch.register_fake
def _(x: Tensor, router_logits: Tensor, gate_up: Tensor, down: Tensor, top_k: int, contrast: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("jakiro::attend", mutates_args=())
def attend(
    query: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    past_length: Tensor,
    visible: Tensor,
    scaling: float,
) -> Tensor:
    """Attention over a cache and the call's rows, [batch, rows, heads, head_dim]; see `graph.tree_attention`."""
    new_mask = tile_groups(additive_mask(visible, query.dtype), query.shape[1] // past_key.shape[1])
    parts = [
        Part(past_key, cached_values(past_value, True), past_mask(past_key, past_length, query.dtype)),
        Part(new_key, cached_values(new_value, True), new_mask),
    ]
    return attention(query, parts, scaling, True).transpose(1, 2).contiguous()


@attend.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


@torch.library.custom_op("jakiro::candidates", mutates_args=())
def candidates(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """See `graph.selection`."""
    return selection.candidates(logits, count)


@candidates.register_fake
def _(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0], count), logits.new_empty(logits.shape[0], count, dtype=torch.int64)


@torch.library.custom_op("jakiro::propose", mutates_args=())
def propose(scores: Tensor, log_probs: Tensor, tokens: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `graph.selection`."""
    totals, proposed, parents = selection.propose(scores, log_probs, tokens, numbers)
    return totals, proposed.clone(), parents.clone()


@propose.register_fake
def _(scores: Tensor, log_probs: Tensor, tokens: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    size = (log_probs.shape[0], log_probs.shape[1] * log_probs.shape[2])
    return scores.new_empty(size), numbers.new_empty(size), numbers.new_empty(size)


@torch.library.custom_op("jakiro::best_nodes", mutates_args=())
def best_nodes(scores: Tensor, tokens: Tensor, parents: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `graph.selection`."""
    return selection.best_nodes(scores, tokens, parents, count)


@best_nodes.register_fake
def _(scores: Tensor, tokens: Tensor, parents: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    size = (scores.shape[0], count)
    return tokens.new_empty(size), tokens.new_empty(size), scores.new_empty(size)


_JAKIRO = onnxscript.values.Opset(DOMAIN, dispatch.VERSION)


def _onnx_rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
    return opset23.RMSNormalization(x, weight, axis=-1, epsilon=epsilon)


def _onnx_rotary(x: Any, cos: Any, sin: Any) -> Any:
    return opset23.RotaryEmbedding(x, cos, sin)


def _onnx_dispatch(x: Any, router_logits: Any, gate_up: Any, down: Any, top_k: int, contrast: bool) -> Any:
    return _JAKIRO.ExpertDispatch(
        x, router_logits, gate_up, down, top_k=top_k, contrast=int(contrast), plugin_namespace=DOMAIN, _outputs=2
    )


def _onnx_attend(
    query: Any,
    past_key: Any,
    past_value: Any,
    new_key: Any,
    new_value: Any,
    past_length: Any,
    visible: Any,
    scaling: float,
) -> Any:
    flat = _JAKIRO.TreeAttention(query, past_key, past_value, new_key, new_value, past_length, visible, scaling=scaling)
    # models take the heads apart to join them again; `fuse.fuse_layers` drops both
    apart: Any = opset23.Constant(value_ints=[0, 0, query.shape[1], query.shape[3]])
    return opset23.Reshape(flat, apart)


def _onnx_candidates(logits: Any, count: int) -> Any:
    return _JAKIRO.Candidates(logits, opset23.Constant(value_ints=[count]), _outputs=2)


def _onnx_propose(scores: Any, log_probs: Any, tokens: Any, numbers: Any) -> Any:
    return _JAKIRO.Propose(scores, log_probs, tokens, numbers, _outputs=3)


def _onnx_best_nodes(scores: Any, tokens: Any, parents: Any, count: int) -> Any:
    return _JAKIRO.BestNodes(scores, tokens, parents, opset23.Constant(value_ints=[count]), _outputs=3)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.jakiro.rms_norm.default: _onnx_rms_norm,
    torch.ops.jakiro.rotary.default: _onnx_rotary,
    torch.ops.jakiro.expert_dispatch.default: _onnx_dispatch,
    torch.ops.jakiro.attend.default: _onnx_attend,
    torch.ops.jakiro.candidates.default: _onnx_candidates,
    torch.ops.jakiro.propose.default: _onnx_propose,
    torch.ops.jakiro.best_nodes.default: _onnx_best_nodes,
}
