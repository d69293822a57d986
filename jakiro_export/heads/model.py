"""The draft phase under the graph contract: accepted rows in, a tree of candidates out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from jakiro_export.heads.config import TreeShape
from jakiro_export.heads.layer import DraftLayer
from jakiro_export.ops.attention import KVSegment

TreeOutputs = tuple[Tensor, Tensor, Tensor]


class Prediction(NamedTuple):
    """What a head predicts after some rows.

    feature: what the input of a child continues, [batch, rows, hidden]
    scored: what `DraftModel.candidates` reads the next tokens off
    parallel: the same for the tokens after next, from the same forward; None where the head has no such guess
    """

    feature: Tensor
    scored: Tensor
    parallel: Tensor | None


class LastRows(NamedTuple):
    """The last accepted row of each sequence, after which the tree grows.

    x: what the head's last layer reads of it, [batch, 1, ...]
    query: that layer's, [batch, heads, 1, head_dim]
    position: [batch, 1]
    segments: for each layer the cache and the call's accepted rows: what the row and the whole tree attend to
    """

    x: Tensor
    query: Tensor
    position: Tensor
    segments: list[list[KVSegment]]


class DraftTree(ABC):
    """A kind of tree (`heads.trees`), of a certain shape. searchable: `--tree auto` may choose another shape."""

    searchable: bool

    def __init__(self, shape: TreeShape) -> None:
        self.shape = shape

    @property
    @abstractmethod
    def passes(self) -> list[int]:
        """Rows of each pass through the head's layers, the first one of the last accepted row."""

    def constants(self) -> dict[str, np.ndarray]:
        """Index arrays that the graph holds, by name."""
        return {}

    @abstractmethod
    def reshaped(self, shape: TreeShape) -> DraftTree:
        """A tree of this kind and another shape; itself where the kind has but one."""

    @abstractmethod
    def grow(self, model: DraftModel, last: LastRows) -> TreeOutputs:
        """tree_tokens, tree_parents and tree_scores of the contract, [batch, nodes] each."""


class DraftModel(nn.Module, ABC):
    """A head's layers, a vocabulary and a tree, as one module.

    head: the last layer, of most heads the only one
    lower: the layers before it, each with `features` of the same arguments
    fc: makes a layer's row of what it reads
    embedding, projection: [vocab, hidden] and [draft_vocab, hidden]
    token_map: [draft_vocab], the token that a row of the projection stands for; None where that is the row's own number
    """

    def __init__(self, layer: DraftLayer, tree: DraftTree, draft_vocab: int | None, lower: Sequence[DraftLayer] = ()) -> None:
        super().__init__()
        self.head, self.tree = layer, tree
        self.lower = nn.ModuleList(lower)
        config = layer.config
        self.fc = nn.Linear(config.fc_inputs, config.hidden, bias=config.fc_bias)
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.projection = nn.Parameter(torch.empty(draft_vocab or config.vocab, config.hidden))
        self.token_map: Tensor | None
        self.register_buffer("token_map", torch.zeros(draft_vocab, dtype=torch.int64) if draft_vocab else None)
        for name, value in tree.constants().items():
            self.register_buffer(name, torch.empty(value.shape, dtype=torch.bool if value.dtype == bool else torch.int64))

    @property
    def layers(self) -> list[DraftLayer]:
        """All layers, the first one first."""
        return [*self.lower, self.head]  # type: ignore[list-item]

    def from_target(self, features: Tensor) -> Tensor:
        """The target's features [batch, rows, width] as `embed` reads features, [batch, rows, hidden]; here they are the same."""
        return features

    def embed(self, tokens: Tensor, features: Tensor) -> Tensor:
        """What the first layer reads, [batch, rows, ...], of tokens [batch, rows] and the features they continue."""
        x: Tensor = self.fc(torch.cat([nn.functional.embedding(tokens, self.embedding), features], -1))
        return x

    def tokens(self, index: Tensor) -> Tensor:
        """The tokens that rows of the projection stand for."""
        return index if self.token_map is None else self.token_map[index]

    @abstractmethod
    def predict(self, x: Tensor, query: Tensor, segments: list[KVSegment], parallel: bool) -> Prediction:
        """Run rows through the last layer.

        Args:
            x: what it reads, [batch, rows, ...]
            query: [batch, heads, rows, head_dim]
            segments: what they attend to
            parallel: whether the second guess will be used
        """

    def candidates(self, scored: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The best tokens of a prediction: log-probabilities and tokens, [batch, rows, count] each, best first.

        Here `scored` is features, [batch, rows, hidden], and a projected feature is the logits; a head that predicts otherwise
        overrides this.
        """
        logits = nn.functional.linear(scored.flatten(0, 1), self.projection).float()
        log_probs, index = self.head.selection.candidates(logits, count)
        tokens = self.tokens(index)
        size = (*scored.shape[:2], count)
        return log_probs.view(size), tokens.view(size)

    def forward(
        self,
        input_ids: Tensor,
        hidden_states: Tensor,
        position_ids: Tensor,
        last_row: Tensor,
        past_length: Tensor,
        past_key: Tensor | list[Tensor],
        past_value: Tensor | list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Shapes as in the contract. Returns tree_tokens, tree_parents, tree_scores, new keys, new values.

        Every accepted row gives its keys; only the last one needs the rest of the last layer.
        """
        past = zip(*([each] if isinstance(each, Tensor) else each for each in (past_key, past_value)), strict=True)
        rows = torch.arange(input_ids.shape[1], device=input_ids.device)
        in_rows = (rows[None, :] <= last_row[:, None])[:, None, :]
        causal = (rows[None, :] <= rows[:, None]).expand(input_ids.shape[0], -1, -1)
        x = self.embed(input_ids, self.from_target(hidden_states))
        new_keys: list[Tensor] = []
        new_values: list[Tensor] = []
        segments: list[list[KVSegment]] = []
        for layer, (key, value) in zip(self.layers, past, strict=True):
            query, new_key, new_value = layer.project(x, position_ids)
            cached = layer.cached(key, value, past_length)
            new_keys, new_values = [*new_keys, new_key], [*new_values, new_value]
            segments.append([cached, layer.new_rows(new_key, new_value, in_rows)])
            if layer is not self.head:
                x = layer.features(x, query, [cached, layer.new_rows(new_key, new_value, causal)])  # type: ignore[operator]
        last = last_row[:, None]
        query = torch.gather(query, 2, last[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        last_rows = LastRows(gather_rows(x, last), query, torch.gather(position_ids, 1, last), segments)
        return (*self.tree.grow(self, last_rows), *new_keys, *new_values)


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [batch, n] of x [batch, rows, width], as [batch, n, width]."""
    return torch.gather(x, 1, rows[:, :, None].expand(-1, -1, x.shape[-1]))
