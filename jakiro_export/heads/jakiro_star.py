"""Jakiro* heads: two plain experts whose outputs are two predictions, and a tree whose shape is fixed (the published code).

The experts are ranked by the gate. A token's probability is what the two predictions give it in one softmax over both; the next
level continues the first-ranked expert's feature. Nothing in `config.json` says that a head is of this kind: its tensors do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jakiro_export.artifact.weights import Reshaped, Stacked, Transposed, Weight
from jakiro_export.heads.config import Shape, TreeShape
from jakiro_export.heads.family import DraftHead
from jakiro_export.heads.layer import EXPERTS, DraftLayer, LayerConfig, layer_shapes, layer_weights, read_layer, two_experts
from jakiro_export.heads.model import DraftModel, DraftTree, Prediction
from jakiro_export.heads.registry import register
from jakiro_export.heads.trees import EAGLE_PATHS, StaticPaths, paths
from jakiro_export.ops.attention import KVSegment
from jakiro_export.precisions import AttentionImpl

PUBLISHED_TREE = StaticPaths([*EAGLE_PATHS, *paths("000000")])


@dataclass(frozen=True, kw_only=True)
class JakiroStarConfig(LayerConfig):
    """The sizes of a Jakiro* head. inner: width between an expert's matrices; third: its experts have a third matrix."""

    experts: int
    inner: int
    third: bool


class JakiroStarLayer(DraftLayer):
    """The shared layer and experts of `fc`, gelu, `proj` and, in a variant, gelu and `fc1`."""

    config: JakiroStarConfig

    def __init__(self, config: JakiroStarConfig, attention: AttentionImpl, opset: int) -> None:
        super().__init__(config, attention, opset)
        c = config
        self.router = nn.Linear(c.hidden, c.experts, bias=False)
        self.expert_in = nn.Parameter(torch.empty(c.experts, c.hidden, c.inner))
        self.expert_out = nn.Parameter(torch.empty(c.experts, c.inner, c.hidden))
        self.expert_third = nn.Parameter(torch.empty(c.experts, c.hidden, c.hidden)) if c.third else None

    def features(self, x: Tensor, query: Tensor, segments: list[KVSegment]) -> Tensor:
        """The next features by either expert, the first-ranked first, [2, batch, rows, hidden]; x [batch, rows, hidden]."""
        x, normed = self.attend(x, query, segments)
        y = nn.functional.gelu(normed[None] @ self.expert_in) @ self.expert_out  # [2, batch * rows, hidden]
        if self.expert_third is not None:
            y = nn.functional.gelu(y) @ self.expert_third
        gate = self.router(normed)
        in_order = (gate[:, :1] > gate[:, 1:])[None]  # a tie swaps them, as published
        ranked = torch.where(in_order, y, torch.stack([y[1], y[0]]))
        return x[None] + ranked.view(2, *x.shape)


class JakiroStarModel(DraftModel):
    """The draft phase of a Jakiro* head. It has no second guess for a parallel step."""

    head: JakiroStarLayer

    def predict(self, x: Tensor, query: Tensor, segments: list[KVSegment], parallel: bool) -> Prediction:
        features = self.head.features(x, query, segments)
        return Prediction(features[0], features, None)

    def candidates(self, scored: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As `DraftModel.candidates`, of features [2, batch, rows, hidden]."""
        logits = nn.functional.linear(scored, self.projection).float()
        high, low = torch.maximum(logits[0], logits[1]), torch.minimum(logits[0], logits[1])
        either = high + torch.log(1.0 + torch.exp(low - high))  # [batch, rows, draft_vocab]
        best, index = either.topk(count, dim=-1)
        total = best[..., :1] + torch.exp(either - best[..., :1]).sum(-1, keepdim=True).log()
        return best - total, self.tokens(index)


@register
class JakiroStarHead(DraftHead):
    """The family of Jakiro* heads."""

    variant, title = "jakiro_star", "Jakiro*"
    config: JakiroStarConfig

    @classmethod
    def recognises(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
        return f"{EXPERTS}experts.0.fc.weight" in shapes

    @classmethod
    def read_config(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> JakiroStarConfig:
        expert = f"{EXPERTS}experts.0."
        inner = next(iter(shapes[f"{expert}fc.weight"]), 0)
        return JakiroStarConfig(
            **read_layer(config), experts=two_experts(config), inner=inner, third=f"{expert}fc1.weight" in shapes
        )

    @classmethod
    def expected_shapes(cls, config: JakiroStarConfig) -> dict[str, Shape]:
        c = config
        shapes: dict[str, Shape] = {f"{EXPERTS}gate.weight": (c.experts, c.hidden)}
        for expert in range(c.experts):
            base = f"{EXPERTS}experts.{expert}."
            shapes[f"{base}fc.weight"], shapes[f"{base}proj.weight"] = (c.inner, c.hidden), (c.hidden, c.inner)
            if c.third:
                shapes[f"{base}fc1.weight"] = (c.hidden, c.hidden)
        return layer_shapes(c, shapes)

    @property
    def summary(self) -> str:
        return f"{super().summary}, {self.config.experts} experts of inner size {self.config.inner}"

    @property
    def num_experts(self) -> int:
        return self.config.experts

    def tree(self, shape: TreeShape) -> DraftTree:
        return PUBLISHED_TREE

    def model(self, tree: DraftTree, draft_vocab: int | None, attention: AttentionImpl, opset: int) -> JakiroStarModel:
        return JakiroStarModel(JakiroStarLayer(self.config, attention, opset), tree, draft_vocab)

    def layer_weights(self, dtype: np.dtype) -> dict[str, Weight]:
        c, stored = self.config, self.stored(dtype)

        def experts(name: str, inputs: int, outputs: int) -> Weight:
            bases = (f"{EXPERTS}experts.{n}." for n in range(c.experts))
            matrices = Stacked(tuple(Transposed(stored(f"{base}{name}.weight")) for base in bases))
            return Reshaped(matrices, (c.experts, inputs, outputs))

        weights = {
            **layer_weights(c, stored),
            "head.router.weight": stored(f"{EXPERTS}gate.weight"),
            "head.expert_in": experts("fc", c.hidden, c.inner),
            "head.expert_out": experts("proj", c.inner, c.hidden),
        }
        if c.third:
            weights["head.expert_third"] = experts("fc1", c.hidden, c.hidden)
        return weights
