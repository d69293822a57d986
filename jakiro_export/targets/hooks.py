"""transformers' public hooks: attention and cache of a model, replaced by those of the graph contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache

from jakiro_export.errors import ExportError
from jakiro_export.ops.attention import KVSegment, additive_mask, attention, cached_values, past_mask, tile_groups
from jakiro_export.ops.tree_attention import fused_tree_attention
from jakiro_export.precisions import AttentionImpl

ATTENTION = "jakiro_two_part"  # the name under which transformers knows it


class ReadOnlyCache(Cache):
    """A cache that is only read: `update` keeps this call's rows aside and returns them alone.

    The attention function finds the past here, by layer, and which row attends to which: `past_length` and `visible` for fused
    attention, the masks of `masks` otherwise.

    Args:
        positions: [batch, rows]
        groups: queries for each key
        context: positions that the engine serves; a window that is no smaller hides nothing

    windowed: the window of each layer that asked for one
    """

    def __init__(
        self,
        past_keys: list[Tensor],
        past_values: list[Tensor],
        past_length: Tensor,
        visible: Tensor,
        positions: Tensor,
        groups: int,
        impl: AttentionImpl,
        context: int | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.past_keys, self.past_values = past_keys, past_values
        self.past_length, self.visible, self.impl = past_length, visible, impl
        self.windowed: dict[int, int] = {}
        self._positions, self._groups, self._context = positions, groups, context
        self._masks: dict[int | None, tuple[Tensor, Tensor]] = {}
        self.new_keys: list[Tensor] = [None] * len(past_keys)  # type: ignore[list-item]
        self.new_values: list[Tensor] = [None] * len(past_keys)  # type: ignore[list-item]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.new_keys[layer_idx] = key_states
        self.new_values[layer_idx] = cached_values(value_states, self.impl == "bitwise")
        return key_states, self.new_values[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        raise ExportError(
            "This target's code asks its cache for a length, which is known only at run time; this exporter cannot trace it."
        )

    def window(self, layer: int, asked: int | None) -> int | None:
        """How many positions a layer sees, itself included; None for all."""
        if asked is None or (self._context is not None and asked >= self._context):
            return None
        self.windowed[layer] = asked
        return asked

    def masks(self, window: int | None) -> tuple[Tensor, Tensor]:
        """What is added to the scores of the cache's slots and of the call's rows, made once for a window.

        A row sees the positions above its own minus the window. A slot's number is its position.

        Returns:
            [batch, 1, 1 or groups * rows, capacity] and [batch, 1, groups * rows, rows]
        """
        if window not in self._masks:
            dtype, visible = self.past_keys[0].dtype, self.visible
            past = past_mask(self.past_keys[0], self.past_length, dtype)
            if window is not None:
                slots = torch.arange(self.past_keys[0].shape[2], device=visible.device)
                first = self._positions[:, :, None] - window  # the last position that is not seen
                seen = (slots[None, None, :] < self.past_length[:, None, None]) & (slots[None, None, :] > first)
                past = tile_groups(additive_mask(seen, dtype), self._groups)
                visible = visible & (self._positions[:, None, :] > first)
            self._masks[window] = past, tile_groups(additive_mask(visible, dtype), self._groups)
        return self._masks[window]


_current: list[ReadOnlyCache] = []


@contextmanager
def attention_over(cache: ReadOnlyCache) -> Iterator[None]:
    """While a model runs, its attention reads this cache."""
    _current.append(cache)
    try:
        yield
    finally:
        _current.pop()


# Arguments of transformers' attention interface that say nothing about what is computed here
_WITHOUT_EFFECT = frozenset({
    "dropout", "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "output_router_logits",
    "return_dict", "is_causal", "logits_to_keep", "num_items_in_batch", "position_embeddings", "past_key_values",
})  # fmt: skip


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; `key` and `value` are what `ReadOnlyCache.update` returned.

    Raises:
        ExportError: the model asks for something that is not known here
    """
    unknown = [name for name, given in others.items() if given is not None and name not in _WITHOUT_EFFECT]
    if unknown:
        raise ExportError(f"This target's attention takes {unknown[0]}, which this exporter does not know.")
    cache, layer = _current[-1], int(module.layer_idx)  # type: ignore[arg-type]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = cache.window(layer, sliding_window)
    past_key, past_value = cache.past_keys[layer], cache.past_values[layer]
    if cache.impl == "fused":
        if window is not None or softcap is not None or s_aux is not None:
            raise ExportError("This target's attention has windows, caps or sinks, which the fused operator has not.")
        attended = fused_tree_attention(query, past_key, past_value, key, value, cache.past_length, cache.visible, scale)
        return attended, None
    of_past, of_new = cache.masks(window)
    segments = (KVSegment(past_key, past_value, of_past), KVSegment(key, value, of_new))
    return attention(query, segments, scale, cache.impl == "bitwise", softcap, s_aux).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention)
