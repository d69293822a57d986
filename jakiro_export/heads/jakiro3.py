"""Jakiro-3 heads: Jakiro's experts and parallel step (arXiv 2502.06282) on the features of EAGLE-3 (arXiv 2503.01840).

The format is this project's own and what `jakiro-train --features fused` writes: an EAGLE-3 head of one layer as SafeAILab names
its tensors, whose MLP is Jakiro's gate and experts, `midlayer.mlp_moe.*`. Both guesses, primary and contrast, pass the final norm
before they are projected; a child continues the primary before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from jakiro_export.artifact.weights import Stored, Weight
from jakiro_export.errors import ExportError
from jakiro_export.heads.config import Shape
from jakiro_export.heads.eagle3 import Eagle3Head, FusedModel, FusedRows
from jakiro_export.heads.eagle3_format import Eagle3Config, has_experts, is_eagle3, read_eagle3
from jakiro_export.heads.jakiro import ExpertsConfig, JakiroLayer, expert_shapes, expert_weights, read_experts
from jakiro_export.heads.model import DraftTree, Prediction
from jakiro_export.heads.registry import register
from jakiro_export.ops.attention import KVSegment
from jakiro_export.precisions import AttentionImpl


@dataclass(frozen=True, kw_only=True)
class Jakiro3Config(Eagle3Config, ExpertsConfig):
    """The sizes of a Jakiro-3 head."""


class Jakiro3Layer(FusedRows, JakiroLayer):
    """An EAGLE-3 layer's rows and attention, and a mixture of SwiGLU experts."""

    config: Jakiro3Config


class Jakiro3Model(FusedModel):
    """The draft phase of a Jakiro-3 head. The contrast is the second guess of the parallel step."""

    head: Jakiro3Layer
    config: Jakiro3Config

    def predict(self, x: Tensor, query: Tensor, segments: list[KVSegment], parallel: bool) -> Prediction:
        primary, contrast = self.head.features(x, query, segments, parallel)
        scored = self.head.normed(primary, self.final_norm)
        return Prediction(
            scored if self.config.norm_output else primary,
            scored,
            self.head.normed(contrast, self.final_norm) if parallel else None,
        )


@register
class Jakiro3Head(Eagle3Head):
    """The family of Jakiro-3 heads."""

    variant, title = "jakiro3", "Jakiro-3"
    second_guess = True
    config: Jakiro3Config

    @classmethod
    def recognises(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
        return is_eagle3(shapes) and has_experts(shapes)

    @classmethod
    def read_config(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Jakiro3Config:
        eagle3 = read_eagle3(config, shapes)
        if eagle3.layers != 1:
            raise ExportError(f"The Jakiro-3 head has {eagle3.layers} layers; it is defined with one.")
        return Jakiro3Config(**{**vars(eagle3), **read_experts(config), "dialect": "jakiro-export"})

    @classmethod
    def feed_forward_shapes(cls, config: Any, prefix: str) -> dict[str, Shape]:
        return expert_shapes(config, f"{prefix}mlp_moe.")

    def feed_forward_weights(self, stored: Callable[[str], Stored], prefix: str, place: str) -> dict[str, Weight]:
        return expert_weights(self.config, stored, f"{prefix}mlp_moe.")

    @property
    def summary(self) -> str:
        return f"{super().summary}; {self.config.experts} experts of inner size {self.config.inner}"

    @property
    def num_experts(self) -> int:
        return self.config.experts

    def model(self, tree: DraftTree, draft_vocab: int | None, attention: AttentionImpl, opset: int) -> Jakiro3Model:
        return Jakiro3Model(self.config, [Jakiro3Layer(self.config, attention, opset)], tree, draft_vocab)
