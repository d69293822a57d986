"""EAGLE-3 heads: several of the target's layers in, a projection of their own (arXiv 2503.01840).

A row reads the token's embedding and a feature, each normed, side by side. After an accepted row the feature is the fc of the
target's layers; in the tree it is what the head itself gave for the parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jakiro_export.artifact.weights import Picked, Reshaped, Stacked, Stored, Weight
from jakiro_export.checkpoints.head import HeadCheckpoint
from jakiro_export.checkpoints.store import same_rows
from jakiro_export.checkpoints.target import Target
from jakiro_export.errors import ExportError
from jakiro_export.heads.config import Shape
from jakiro_export.heads.eagle import EagleLayer, LaterLayer, mlp_shapes, mlp_weights
from jakiro_export.heads.eagle3_format import Eagle3Config, has_experts, is_eagle3, read_eagle3
from jakiro_export.heads.family import DraftHead
from jakiro_export.heads.layer import DraftLayer, attention_shapes, attention_weights, fc_shapes
from jakiro_export.heads.model import DraftModel, DraftTree, Prediction
from jakiro_export.heads.registry import register
from jakiro_export.ops.attention import KVSegment
from jakiro_export.precisions import AttentionImpl


class FusedRows(DraftLayer):
    """A layer whose rows are a normed embedding, a normed feature and, where the attention is added to it, the feature."""

    def __init__(self, config: Any, attention: AttentionImpl, opset: int) -> None:
        super().__init__(config, attention, opset, inputs=2 * config.hidden)

    def attention_inputs(self, x: Tensor) -> Tensor:
        return x[..., : 2 * self.config.hidden]

    def residual(self, x: Tensor) -> Tensor:
        return x[..., -self.config.hidden :]


class FirstLayer(FusedRows, EagleLayer):
    """The first layer of an EAGLE-3 head."""


class FusedModel(DraftModel):
    """The draft phase of a head that reads several of the target's layers, up to what its last layer predicts.

    states_norm: what the fc's input is normed by, [states, target_hidden] each state by itself or [1, all] all together
    """

    def __init__(self, config: Eagle3Config, layers: Sequence[DraftLayer], tree: DraftTree, proposed: int | None) -> None:
        *lower, last = layers
        super().__init__(last, tree, proposed, lower)
        c, self.config = config, config
        self.embedding_norm, self.final_norm = (nn.Parameter(torch.empty(c.hidden)) for _ in range(2))
        self.feature_norm = nn.Parameter(torch.empty(c.hidden)) if c.states else None
        self.states_norm: nn.Parameter | None = None
        if c.fc_norm:
            self.states_norm = nn.Parameter(torch.empty(c.states, c.target_hidden))
        elif c.norm_before_fc:
            self.states_norm = nn.Parameter(torch.empty(1, c.states * c.target_hidden))
        if not c.states:
            del self.fc

    def from_target(self, features: Tensor) -> Tensor:
        if not self.config.states:
            return features
        if self.states_norm is not None:
            parts = features.chunk(len(self.states_norm), -1)
            features = torch.cat([self.head.normed(x, norm) for x, norm in zip(parts, self.states_norm, strict=True)], -1)
        x: Tensor = self.fc(features)
        return x

    def embed(self, tokens: Tensor, features: Tensor) -> Tensor:
        embedded = self.head.normed(nn.functional.embedding(tokens, self.embedding), self.embedding_norm)
        read = features if self.feature_norm is None else self.head.normed(features, self.feature_norm)
        return torch.cat([embedded, read] if self.config.norm_before_residual else [embedded, read, features], -1)


class Eagle3Model(FusedModel):
    """The draft phase of an EAGLE-3 head: a pass of its layers for every level of the tree."""

    head: EagleLayer

    def predict(self, x: Tensor, query: Tensor, segments: list[KVSegment], parallel: bool) -> Prediction:
        feature = self.head.features(x, query, segments)
        scored = self.head.normed(feature, self.final_norm)
        return Prediction(scored if self.config.norm_output else feature, scored, None)


@register
class Eagle3Head(DraftHead):
    """The family of EAGLE-3 heads. Its dialects differ in names, in what a layer number means, and in norms."""

    variant, title = "eagle3", "EAGLE-3"
    second_guess = False
    ignored = ("embed_tokens", "t2d", "verifier_", "rotary_emb")
    config: Eagle3Config

    def __init__(self, checkpoint: HeadCheckpoint, config: Eagle3Config) -> None:
        super().__init__(checkpoint, config)
        self._proposed()  # refuse a map that points outside before any work

    @property
    def dialect(self) -> str:
        return self.config.dialect

    @classmethod
    def recognises(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
        return is_eagle3(shapes) and not has_experts(shapes)

    @classmethod
    def read_config(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Eagle3Config:
        return read_eagle3(config, shapes)

    @classmethod
    def expected_shapes(cls, config: Eagle3Config) -> dict[str, Shape]:
        c = config
        shapes = {**_norm_shapes(c), **(fc_shapes(c) if c.states else {})}
        for number in range(c.layers):
            prefix = c.layer_prefix(number)
            shapes.update(attention_shapes(c, prefix, c.hidden if number else 2 * c.hidden))
            shapes.update(cls.feed_forward_shapes(c, prefix))
        if c.own_projection:
            shapes["lm_head.weight"] = (c.draft_vocab, c.hidden)
        return shapes

    @classmethod
    def feed_forward_shapes(cls, config: Any, prefix: str) -> dict[str, Shape]:
        """What a layer has after its attention: an MLP; `prefix`: of its tensors' names."""
        return mlp_shapes(config, prefix)

    def feed_forward_weights(self, stored: Callable[[str], Stored], prefix: str, place: str) -> dict[str, Weight]:
        """The recipes of these; `place`: of the layer in the model."""
        return mlp_weights(stored, prefix, place)

    @classmethod
    def expected_integers(cls, config: Eagle3Config) -> dict[str, Shape]:
        return {"d2t": (config.draft_vocab,)} if config.draft_vocab < config.vocab else {}

    @property
    def summary(self) -> str:
        return f"{super().summary}, {self.dialect}; reads {self.reads}"

    @property
    def reads(self) -> str:
        c = self.config
        if not c.states:
            return super().reads
        if c.named_layers is None:
            return "the inputs of layer 2, the middle one and the third from the end"
        return f"the inputs of layers {', '.join(map(str, c.named_layers))}"

    def feature_layers(self, count: int) -> tuple[int, ...]:
        c = self.config
        if not c.states:
            return ()
        layers = c.named_layers or tuple(sorted({2, count // 2, count - 3}))
        if len(layers) != c.states or layers[0] < 0:
            raise ExportError(
                f"The head in {self.checkpoint.path} names no layers, and a target of {count} has not the usual ones (2, "
                f"{count // 2} and {count - 3}); name them as eagle_aux_hidden_state_layer_ids in its config.json."
            )
        if layers[-1] > count:
            raise ExportError(
                f"The head in {self.checkpoint.path} reads the input of layer {layers[-1]}, but the target has {count} layers; "
                f"use the head that was trained for this target."
            )
        return layers

    @property
    def window(self) -> int | None:
        return self.config.window

    def _proposed(self) -> np.ndarray:
        """The target's token for each row of the projection. Raises ExportError for a map that is none."""
        c, store = self.config, self.checkpoint.store
        rows = np.arange(c.draft_vocab)
        if "d2t" not in store.shapes():
            return rows
        tokens = rows + store.rows("d2t", 0, c.draft_vocab).astype(np.int64)
        if tokens.min() < 0 or tokens.max() >= c.vocab or len(np.unique(tokens)) != len(tokens):
            raise ExportError(
                f"The head in {self.checkpoint.path} has a d2t that is no map into the target's {c.vocab} tokens: d + d2t[d] "
                f"must be distinct token ids."
            )
        return tokens

    @cached_property
    def _places(self) -> dict[int, int]:
        """The row of the projection that stands for a token."""
        return {token: row for row, token in enumerate(self._proposed().tolist())}

    @property
    def frequency(self) -> str:
        return "mapped"

    def token_map(self, draft_vocab: int | None) -> np.ndarray | None:
        tokens = self._proposed()
        if draft_vocab is not None and draft_vocab < len(tokens):
            order = np.sort(tokens) if self.token_order is None else self.token_order
            wanted = [token for token in order.tolist() if token in self._places]
            rest = np.setdiff1d(tokens, wanted).tolist()
            return np.sort(np.array([*wanted, *rest], np.int64)[:draft_vocab])
        return None if np.array_equal(tokens, np.arange(self.config.vocab)) else tokens

    def model(self, tree: DraftTree, draft_vocab: int | None, attention: AttentionImpl, opset: int) -> FusedModel:
        c = self.config
        later = [LaterLayer(c, attention, opset) for _ in range(1, c.layers)]
        return Eagle3Model(c, [FirstLayer(c, attention, opset), *later], tree, draft_vocab)

    def layer_weights(self, dtype: np.dtype) -> dict[str, Weight]:
        c, stored = self.config, self.stored(dtype)
        weights: dict[str, Weight] = {name: stored(name) for name in (fc_shapes(c) if c.states else {})}
        for number in range(c.layers):
            prefix, place = c.layer_prefix(number), "head." if number == c.layers - 1 else f"lower.{number}."
            weights.update(attention_weights(c, stored, prefix, place))
            weights.update(self.feed_forward_weights(stored, prefix, place))
            if number:
                weights[f"{place}input_norm"] = stored(f"{prefix}input_layernorm.weight")
        weights["embedding_norm"] = stored(f"{c.prefix}input_layernorm.weight")
        weights["final_norm"] = stored("norm.weight")
        if c.states:
            weights["feature_norm"] = stored(f"{c.prefix}hidden_norm.weight")
        if c.fc_norm:
            rows = Stacked(tuple(stored(f"fc_norm.{n}.weight") for n in range(c.states)))
            weights["states_norm"] = Reshaped(rows, (c.states, c.target_hidden))
        elif c.norm_before_fc:
            weights["states_norm"] = Reshaped(Stacked((stored("input_norm.weight"),)), (1, c.fc_inputs))
        return weights

    def vocabulary_weights(self, target: Target, dtype: np.dtype, token_map: np.ndarray | None) -> dict[str, Weight]:
        """Embedding and projection: its own where it has them and they differ from the target's."""
        c, store = self.config, self.checkpoint.store
        name, theirs = "embed_tokens.weight", target.embedding_name()
        has_own = name in store.shapes()
        if c.hidden != c.target_hidden and not has_own:
            raise ExportError(
                f"The head in {self.checkpoint.path} is {c.hidden} wide and its target {c.target_hidden}, but it has no "
                f"embed_tokens of its own."
            )
        if has_own and store.shapes()[name] != (c.vocab, c.hidden):
            raise ExportError(
                f"The head in {self.checkpoint.path} has an embed_tokens of shape {list(store.shapes()[name])}; "
                f"{[c.vocab, c.hidden]} was expected."
            )
        own = has_own and not same_rows(store, name, target.store, theirs)
        embedding = Stored(store, name, dtype) if own else Stored(target.store, theirs, dtype)
        if not c.own_projection:
            return {**super().vocabulary_weights(target, dtype, token_map), "embedding": embedding}
        rows = None if token_map is None else np.array([self._places[token] for token in token_map.tolist()])
        if rows is None or np.array_equal(rows, np.arange(c.draft_vocab)):
            return {"embedding": embedding, "projection": Stored(store, "lm_head.weight", dtype)}
        return {"embedding": embedding, "projection": Picked(store, "lm_head.weight", dtype, rows)}


def _norm_shapes(c: Eagle3Config) -> dict[str, Shape]:
    """The norms' tensors, but for those after attention."""
    names = [f"{c.layer_prefix(number)}input_layernorm.weight" for number in range(c.layers)]
    shapes: dict[str, Shape] = dict.fromkeys(("norm.weight", *names), (c.hidden,))
    if c.states:
        shapes[f"{c.prefix}hidden_norm.weight"] = (c.hidden,)
    if c.fc_norm:
        shapes.update({f"fc_norm.{n}.weight": (c.target_hidden,) for n in range(c.states)})
    if c.norm_before_fc:
        shapes["input_norm.weight"] = (c.fc_inputs,)
    return shapes
