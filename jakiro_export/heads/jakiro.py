"""Jakiro heads: two SwiGLU experts, their sum and their contrast (arXiv 2502.06282 and the published checkpoints)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jakiro_export.artifact.weights import Reshaped, Stacked, Stored, Weight
from jakiro_export.heads.config import Shape
from jakiro_export.heads.family import DraftHead
from jakiro_export.heads.layer import EXPERTS, DraftLayer, LayerConfig, layer_shapes, layer_weights, read_layer, two_experts
from jakiro_export.heads.model import DraftModel, DraftTree, Prediction
from jakiro_export.heads.registry import register
from jakiro_export.ops.attention import KVSegment
from jakiro_export.ops.expert_dispatch import fused_expert_dispatch
from jakiro_export.precisions import AttentionImpl


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(LayerConfig):
    """The sizes of a layer with two SwiGLU experts. inner: width between an expert's matrices."""

    experts: int
    experts_per_token: int
    inner: int


def read_experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ExpertsConfig` that are not the layer's. Raises ExportError for another number of experts than two."""
    return {
        "experts": two_experts(config),
        "experts_per_token": int(config.get("num_experts_per_tok", 2)),
        "inner": int(config.get("intermediate") or config["hidden_size"]),
    }


def expert_shapes(c: ExpertsConfig, prefix: str) -> dict[str, Shape]:
    """The tensors of gate and experts and their shapes; `prefix`: of their names."""
    shapes: dict[str, Shape] = {f"{prefix}gate.weight": (c.experts + 2, c.hidden)}
    for expert in range(c.experts):
        base = f"{prefix}experts.{expert}."
        shapes[f"{base}gate_proj.weight"] = shapes[f"{base}up_proj.weight"] = (c.inner, c.hidden)
        shapes[f"{base}down_proj.weight"] = (c.hidden, c.inner)
    return shapes


def expert_weights(c: ExpertsConfig, stored: Callable[[str], Stored], prefix: str) -> dict[str, Weight]:
    """The recipes of a `JakiroLayer`'s gate and experts."""
    experts = [f"{prefix}experts.{n}." for n in range(c.experts)]
    gate_up = Stacked(tuple(stored(f"{base}{kind}_proj.weight") for base in experts for kind in ("gate", "up")))
    down = Stacked(tuple(stored(f"{base}down_proj.weight") for base in experts))
    return {
        "head.router.weight": stored(f"{prefix}gate.weight"),
        "head.gate_up": Reshaped(gate_up, (c.experts, 2 * c.inner, c.hidden)),
        "head.down": Reshaped(down, (c.experts, c.hidden, c.inner)),
    }


class JakiroLayer(DraftLayer):
    """The shared layer and a mixture of SwiGLU experts."""

    config: ExpertsConfig

    def __init__(self, config: ExpertsConfig, attention: AttentionImpl, opset: int, inputs: int | None = None) -> None:
        super().__init__(config, attention, opset, inputs)
        c = config
        self.router = nn.Linear(c.hidden, c.experts + 2, bias=False)
        self.gate_up = nn.Parameter(torch.empty(c.experts, 2 * c.inner, c.hidden))
        self.down = nn.Parameter(torch.empty(c.experts, c.hidden, c.inner))

    def features(self, x: Tensor, query: Tensor, segments: list[KVSegment], contrast: bool) -> tuple[Tensor, Tensor]:
        """The next features (primary, contrast), both [batch, rows, hidden], of inputs [batch, rows, ...]."""
        x, normed = self.attend(x, query, segments)
        left, right = fused_expert_dispatch(
            normed, self.router(normed), self.gate_up, self.down, self.config.experts_per_token, contrast
        )  # [batch * rows, hidden]
        return x + left.view_as(x), x + right.view_as(x)


class JakiroModel(DraftModel):
    """The draft phase of a Jakiro head. The contrast is the second guess of the parallel step."""

    head: JakiroLayer

    def predict(self, x: Tensor, query: Tensor, segments: list[KVSegment], parallel: bool) -> Prediction:
        primary, contrast = self.head.features(x, query, segments, parallel)
        return Prediction(primary, primary, contrast)


@register
class JakiroHead(DraftHead):
    """The family of Jakiro heads."""

    variant, title = "jakiro", "Jakiro"
    config: ExpertsConfig

    @classmethod
    def recognises(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
        return any(name.startswith(EXPERTS) for name in shapes) and f"{EXPERTS}experts.0.fc.weight" not in shapes

    @classmethod
    def read_config(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> ExpertsConfig:
        return ExpertsConfig(**read_layer(config), **read_experts(config))

    @classmethod
    def expected_shapes(cls, config: ExpertsConfig) -> dict[str, Shape]:
        return layer_shapes(config, expert_shapes(config, EXPERTS))

    @property
    def summary(self) -> str:
        return f"{super().summary}, {self.config.experts} experts of inner size {self.config.inner}"

    @property
    def num_experts(self) -> int:
        return self.config.experts

    def model(self, tree: DraftTree, draft_vocab: int | None, attention: AttentionImpl, opset: int) -> JakiroModel:
        return JakiroModel(JakiroLayer(self.config, attention, opset), tree, draft_vocab)

    def layer_weights(self, dtype: np.dtype) -> dict[str, Weight]:
        stored = self.stored(dtype)
        return {**layer_weights(self.config, stored), **expert_weights(self.config, stored, EXPERTS)}
