"""Every operator's arithmetic a third time, in numpy and double precision, as its schema's words say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray


def _softmax(x: Array) -> Array:
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def rotary(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    as_complex = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)[:, None]
    return np.concatenate([as_complex.real, as_complex.imag], -1)


def swiglu(both: Array) -> Array:
    half = both.shape[-1] // 2
    return _silu(both[..., :half]) * both[..., half:]


def split_heads(qkv: Array, cos: Array, sin: Array, parts: Array) -> tuple[Array, ...]:
    by_head = qkv.reshape(*qkv.shape[:2], parts.sum(), -1).swapaxes(1, 2)
    query, key, value = np.split(by_head, np.cumsum(parts)[:2], 1)
    return rotary(query, cos, sin), rotary(key, cos, sin), value


def expert_dispatch(x: Array, router_logits: Array, gate_up: Array, down: Array, top_k: int, contrast: int) -> tuple[Array, ...]:
    experts = len(gate_up)
    outputs = np.stack([swiglu(x @ gate_up[n].T) @ down[n].T for n in range(experts)])
    primary = np.zeros_like(x)
    for row, logits in enumerate(router_logits[:, :experts]):
        chosen = sorted(range(experts), key=lambda n, logits=logits: (-logits[n], n))[:top_k]
        for expert, share in zip(chosen, _softmax(logits[chosen]), strict=True):
            primary[row] += share * outputs[expert, row]
    return primary, _contrast(router_logits[:, experts:], outputs[0], outputs[1])


def _contrast(logits: Array, first: Array, second: Array) -> Array:
    share = _softmax(logits)
    sign = np.where(logits[:, :1] > logits[:, 1:], 1, -1)
    return sign * (share[:, :1] * first - share[:, 1:] * second)


def mix_experts(router_logits: Array, first: Array, second: Array) -> tuple[Array, ...]:
    share = _softmax(router_logits[:, :2])
    return share[:, :1] * first + share[:, 1:] * second, _contrast(router_logits[:, 2:], first, second)


def tree_attention(
    query: Array,
    past_key: Array,
    past_value: Array,
    new_key: Array,
    new_value: Array,
    past_length: Array,
    visible: Array,
    scaling: float,
) -> Array:
    batch, heads, rows, _ = query.shape
    group = heads // past_key.shape[1]
    out = np.zeros((batch, rows, heads, query.shape[-1]))
    for b, h, r in np.ndindex(batch, heads, rows):
        length, others = past_length[b], visible[b, r]
        keys = np.concatenate([past_key[b, h // group, :length], new_key[b, h // group, others]])
        values = np.concatenate([past_value[b, h // group, :length], new_value[b, h // group, others]])
        out[b, r, h] = _softmax(keys @ query[b, h, r] * scaling) @ values
    return out.reshape(batch, rows, -1)


def candidates(logits: Array, count: Array) -> tuple[Array, ...]:
    index = np.argsort(-logits, -1, kind="stable")[:, : int(count[0])]
    return np.log(np.take_along_axis(_softmax(logits), index, -1)), index


def propose(scores: Array, log_probs: Array, tokens: Array, numbers: Array) -> tuple[Array, ...]:
    rows = len(scores)
    parents = np.repeat(numbers, tokens.shape[-1], -1)
    return (scores[..., None] + log_probs).reshape(rows, -1), tokens.reshape(rows, -1), parents


def best_nodes(scores: Array, tokens: Array, parents: Array, count: Array) -> tuple[Array, ...]:
    kept = np.sort(np.argsort(-scores, -1, kind="stable")[:, : int(count[0])], -1)
    above = np.take_along_axis(parents, kept, 1)
    numbers = [
        [1 + list(row).index(parent) if parent in row else 0 for parent in up] for row, up in zip(kept, above, strict=True)
    ]
    return np.take_along_axis(tokens, kept, 1), np.array(numbers), np.take_along_axis(scores, kept, 1)


def best_token(logits: Array) -> Array:
    return logits.argmax(-1)


def _quantized(x: Array) -> Array:
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.rint(x / scale) * scale


def int8_matmul(x: Array, rotation: Array, weight: Array, scales: Array) -> Array:
    matrix = (weight.astype(float) - 128).swapaxes(1, 2).reshape(len(scales), -1) * scales[:, None]
    return _quantized((x.reshape(-1, len(rotation)) @ rotation).reshape(x.shape)) @ matrix.T


def int4_matmul(x: Array, weight: Array, scales: Array, mins: Array) -> Array:
    out, width = 16 * weight.shape[0], 32 * weight.shape[1]
    matrix = np.zeros((out, width))
    for row, column in np.ndindex(out, width):
        group, within = divmod(column, 32)
        pair, eighth = divmod(within, 8)
        nibbles = int(weight[row // 16, group, pair, row % 16, eighth % 4])
        step = nibbles >> 4 if eighth >= 4 else nibbles & 15
        matrix[row, column] = float(mins[row // 16, group, row % 16]) + float(scales[row // 16, group, row % 16]) * step
    return _quantized(x.reshape(*x.shape[:-1], -1, 32)).reshape(x.shape) @ matrix.T


def _form(matmul: Callable[..., Array], weights: int, norm: bool, gate: bool, add: bool) -> Callable[..., Array]:
    def result(x: Array, *more: Array, epsilon: float = 0.0) -> Array:
        if norm:
            x = rms_norm(x, more[weights], epsilon)
        if gate:
            x = swiglu(x)
        y = matmul(x, *more[:weights])
        return y + more[-1] if add else y

    return result


_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def dequantize_fp4(scales: Array, packed: Array) -> Array:
    codes = np.stack([packed % 16, packed // 16], -1).reshape(len(packed), -1)
    return np.where(codes < 8, 1, -1) * _FP4[codes % 8] * np.repeat(scales, 16, 0)


def round_fp4(x: Array) -> Array:
    blocks = x.reshape(*x.shape[:-1], -1, 16)
    scale = (np.abs(blocks).max(-1, keepdims=True) / 6 * 2048).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) / 2048
    steps = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)
    return (steps.astype(ml_dtypes.float4_e2m1fn).astype(np.float64) * scale).reshape(x.shape)


DEFINITIONS: dict[str, Callable[..., Any]] = {
    "RMSNormalization": rms_norm,
    "RotaryEmbedding": rotary,
    "ExpertDispatch": expert_dispatch,
    "TreeAttention": tree_attention,
    "Candidates": candidates,
    "Propose": propose,
    "BestNodes": best_nodes,
    "MixExperts": mix_experts,
    "SplitHeads": split_heads,
    "SwiGlu": swiglu,
    "BestToken": best_token,
    "DequantizeFp4": dequantize_fp4,
    "RoundFp4": round_fp4,
}
for _name, _matmul in (("RowInt8MatMul", int8_matmul), ("RowInt4MatMul", int4_matmul)):
    DEFINITIONS[_name] = _form(_matmul, 3, False, False, False)
    DEFINITIONS[f"{_name}Add"] = _form(_matmul, 3, False, False, True)
    DEFINITIONS[f"Norm{_name}"] = _form(_matmul, 3, True, False, False)
    DEFINITIONS[f"SwiGlu{_name}"] = _form(_matmul, 3, False, True, False)
    DEFINITIONS[f"SwiGlu{_name}Add"] = _form(_matmul, 3, False, True, True)
