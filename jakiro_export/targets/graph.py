"""The target under the graph contract: transformers' own modelling code between the contract's inputs and outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jakiro_export.errors import ExportError
from jakiro_export.precisions import AttentionImpl
from jakiro_export.targets import families
from jakiro_export.targets.experts import split_experts
from jakiro_export.targets.features import LayerInputs
from jakiro_export.targets.hooks import ReadOnlyCache, attention_over


class _SelectRows(nn.Module):
    """A wrapper of the output projection: keeps the features, projects only the rows asked for."""

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
    """The target under the graph contract: ids, positions, tree mask and cache in; logits, features and new rows out.

    Args:
        context: positions that the engine serves; None for all that the model serves
        feature_layers: the layers whose inputs a head reads; none: what the projection to logits reads

    stored_names: for each parameter, by its name in the graph, the model's own name of it, which checkpoints use. A tied
        parameter has several names in the graph and one in the checkpoint
    expert_parts: what the parameters of single experts are, by their own names
    projection: the names in the graph of the projection to logits
    """

    config: Any
    groups: int

    def __init__(
        self, model: nn.Module, impl: AttentionImpl, context: int | None = None, feature_layers: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.config = model.config
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.groups = self.config.num_attention_heads // self.config.num_key_value_heads
        self.impl, self.context = impl, context
        self.feature_layers, self._inputs = feature_layers, LayerInputs(model, feature_layers)
        self.expert_parts = split_experts(model)
        own_names = {id(tensor): name for name, tensor in model.named_parameters()}
        projection = model.get_output_embeddings().weight  # type: ignore[operator]
        self.select = _SelectRows(model.get_output_embeddings())  # type: ignore[operator]
        model.set_output_embeddings(self.select)  # type: ignore[operator]
        self.model = model
        tensors = {f"model.{name}": tensor for name, tensor in model.named_parameters(remove_duplicate=False)}
        self.stored_names = {name: own_names[id(tensor)] for name, tensor in tensors.items()}
        self.projection = {name for name, tensor in tensors.items() if tensor is projection}

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
        [batch, kv_heads, capacity, head_dim] a layer. Returns logits, next_tokens, features, new keys, new values.
        """
        cache = ReadOnlyCache(past_keys, past_values, past_length, tree_mask, position_ids, self.groups, self.impl, self.context)
        self.select.logit_rows = logit_rows
        with attention_over(cache):
            logits = self.model(
                input_ids=input_ids,
                attention_mask=cache.masks(None)[1],
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            ).logits
        wanted = families.windows(self.config, self.context)
        if cache.windowed != wanted:
            raise ExportError(
                f"This target's configuration has windows in {len(wanted)} layers, and its code asks for {len(cache.windowed)}; "
                f"export it with a --max-context that its windows do not cut."
            )
        if logits.dtype == torch.bfloat16:
            logits = logits.float()  # the runtime's sampler has no bfloat16
        features = self._inputs.take() if self.feature_layers else self.select.features
        assert features is not None
        return (logits, logits.argmax(-1), features, *cache.new_keys, *cache.new_values)
