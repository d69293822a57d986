"""Attention over a read-only cache and the rows of this call, and what makes it exact.

Keys and values of the past stay where they are; the call's own rows are further keys, and one softmax covers both. In
`bitwise` mode every sum that could depend on where a key sits, or on how many empty slots follow it, is made exact:

- softmax numerators and probabilities are rounded to multiples of 2^-23, values to multiples of 2^-22;
- they are summed in double. 53 bits hold any such sum for |value| < 128, so the order of summation cannot matter.

A token's row is then the same, bit for bit, whether its ancestors sit in the cache or among the rows of the same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

# Adding and subtracting 1.5 * 2^(52 - f) rounds a double to f fractional bits; 1.0 rounds a float in [0, 1] to 23.
VALUE_ROUNDING = 1.5 * 2.0 ** (52 - 22)


def past_mask(key: Tensor, length: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask [batch, 1, 1, capacity] of a cache's keys, of which each sequence has filled `length` slots, [batch]."""
    slots = torch.arange(key.shape[2], device=key.device)
    return additive_mask((slots[None, :] < length[:, None])[:, None, None, :], dtype)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible`, the lowest finite number elsewhere; same shape, of `dtype`."""
    zero = torch.zeros((), dtype=dtype, device=visible.device)
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=visible.device)
    return torch.where(visible, zero, lowest)


def cached_values(value: Tensor, bitwise: bool) -> Tensor:
    """Values in the form the cache keeps: double with 22 fractional bits in bitwise mode, else as they are."""
    if not bitwise:
        return value
    return (value.double() + VALUE_ROUNDING) - VALUE_ROUNDING


class KVSegment(NamedTuple):
    """Some of the keys that a query may see: the cache, or the rows of this call."""

    key: Tensor  # [batch, kv_heads, slots, head_dim]
    value: Tensor  # [batch, kv_heads, slots, head_dim], as `cached_values` returns it
    mask: Tensor  # additive, broadcasts to [batch, kv_heads, groups * rows, slots], queries in (group, row) order


def attention(
    query: Tensor,
    segments: Sequence[KVSegment],
    scaling: float,
    bitwise: bool,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention over keys that lie in several places, under one softmax.

    Args:
        query: [batch, heads, rows, head_dim]
        segments: where the keys are
        scaling: multiplies the scores
        softcap: scores are bent to stay between -softcap and softcap (Gemma 2)
        sinks: [heads], a score of each head that takes its share of the softmax and brings nothing (GPT-OSS)

    Returns:
        [batch, heads, rows, head_dim]
    """
    batch, heads, rows, head_dim = query.shape
    kv_heads = segments[0].key.shape[1]
    # grouped queries lie next to each other, so that keys are never repeated: [batch, kv_heads, groups * rows, head_dim]
    query = (query * scaling).reshape(batch, kv_heads, heads // kv_heads * rows, head_dim)
    found = [query @ segment.key.transpose(2, 3) for segment in segments]
    if softcap is not None:
        found = [softcap * torch.tanh(each / softcap) for each in found]
    masked = [each + segment.mask for each, segment in zip(found, segments, strict=True)]
    if sinks is not None:
        by_group = sinks.reshape(1, kv_heads, heads // kv_heads, 1, 1).to(query.dtype).expand(batch, -1, -1, rows, 1)
        masked.append(by_group.reshape(batch, kv_heads, heads // kv_heads * rows, 1))
    scores = torch.cat(masked, dim=-1)
    if bitwise:
        numerator = (torch.exp(scores - scores.amax(-1, keepdim=True)) + 1.0) - 1.0
        total = numerator.double().sum(-1, keepdim=True).to(scores.dtype)
        weights = ((numerator / total + 1.0) - 1.0).double()
    else:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    seen, start = [], 0
    for segment in segments:
        stop = start + segment.key.shape[2]
        seen.append(weights[..., start:stop] @ segment.value)
        start = stop
    out = reduce(torch.add, seen)
    return out.to(query.dtype).reshape(batch, heads, rows, head_dim)


def tile_groups(mask: Tensor, groups: int) -> Tensor:
    """A mask of rows by slots, [batch, rows, slots], for grouped queries: [batch, 1, groups * rows, slots]."""
    return mask.repeat(1, groups, 1)[:, None]
