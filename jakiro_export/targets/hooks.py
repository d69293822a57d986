"""transformers' public hooks: attention and cache of a model, replaced by those of the graph contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, Cache

from jakiro_export.errors import ExportError
from jakiro_export.ops.attention import KVSegment, attention, cached_values
from jakiro_export.ops.tree_attention import fused_tree_attention
from jakiro_export.precisions import AttentionImpl

ATTENTION = "jakiro_two_part"  # the name under which transformers knows it


class ReadOnlyCache(Cache):
    """A cache that is only read: `update` keeps this call's rows aside and returns them alone.

    The attention function finds the past here, by layer, and which row attends to which: `past_length` and `visible` for fused
    attention, `past_mask` otherwise.
    """

    def __init__(
        self,
        past_keys: list[Tensor],
        past_values: list[Tensor],
        past_mask: Tensor,
        past_length: Tensor,
        visible: Tensor,
        impl: AttentionImpl,
    ) -> None:
        super().__init__(layers=[])
        self.past_keys, self.past_values, self.past_mask = past_keys, past_values, past_mask
        self.past_length, self.visible, self.impl = past_length, visible, impl
        self.new_keys: list[Tensor] = [None] * len(past_keys)  # type: ignore[list-item]
        self.new_values: list[Tensor] = [None] * len(past_keys)  # type: ignore[list-item]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.new_keys[layer_idx] = key_states
        self.new_values[layer_idx] = cached_values(value_states, self.impl == "bitwise")
        return key_states, self.new_values[layer_idx]


_current: list[ReadOnlyCache] = []


@contextmanager
def attention_over(cache: ReadOnlyCache) -> Iterator[None]:
    """While a model runs, its attention reads this cache."""
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
    if cache.impl == "fused":
        past = cache.past_keys[layer], cache.past_values[layer]  # type: ignore[index]
        return fused_tree_attention(query, *past, key, value, cache.past_length, cache.visible, scale), None
    segments = (
        KVSegment(cache.past_keys[layer], cache.past_values[layer], cache.past_mask),  # type: ignore[index]
        KVSegment(key, value, attention_mask),
    )
    return attention(query, segments, scale, cache.impl == "bitwise").transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)
