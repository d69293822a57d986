"""EAGLE heads: one MLP in the place of the experts, no second guess (arXiv 2401.15077, 2406.16858; HASS has the same layout)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jakiro_export.artifact.weights import Stored, Weight
from jakiro_export.errors import ExportError
from jakiro_export.heads.config import Shape
from jakiro_export.heads.family import DraftHead
from jakiro_export.heads.layer import LAYER, DraftLayer, LayerConfig, layer_shapes, layer_weights, read_layer
from jakiro_export.heads.model import DraftModel, DraftTree, Prediction
from jakiro_export.heads.registry import register
from jakiro_export.ops.attention import KVSegment
from jakiro_export.precisions import AttentionImpl

MATRICES = ("gate_proj", "up_proj", "down_proj")  # of the MLP


@dataclass(frozen=True, kw_only=True)
class EagleConfig(LayerConfig):
    """The sizes of an EAGLE head. inner: width between the MLP's matrices."""

    inner: int


def mlp_shapes(c: EagleConfig, prefix: str) -> dict[str, Shape]:
    """The tensors of a layer's MLP and their shapes."""
    gate, up, down = (f"{prefix}mlp.{name}.weight" for name in MATRICES)
    return {gate: (c.inner, c.hidden), up: (c.inner, c.hidden), down: (c.hidden, c.inner)}


def mlp_weights(stored: Callable[[str], Stored], prefix: str, place: str) -> dict[str, Weight]:
    """Their recipes; arguments as `layer.attention_weights` takes them."""
    return {f"{place}{name}.weight": stored(f"{prefix}mlp.{name}.weight") for name in MATRICES}


def check_activation(config: Mapping[str, Any]) -> None:
    """Raise ExportError where a head's `config.json` names another activation than silu."""
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ExportError(f"The head's MLP has the activation {activation!r}; published EAGLE heads have silu.")


class EagleLayer(DraftLayer):
    """The shared layer and a SwiGLU MLP."""

    def __init__(self, config: EagleConfig, attention: AttentionImpl, opset: int, inputs: int | None = None) -> None:
        super().__init__(config, attention, opset, inputs)
        self.gate_proj = nn.Linear(config.hidden, config.inner, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.inner, bias=False)
        self.down_proj = nn.Linear(config.inner, config.hidden, bias=False)

    def features(self, x: Tensor, query: Tensor, segments: list[KVSegment]) -> Tensor:
        """The next features, [batch, rows, hidden], of inputs of that shape."""
        x, normed = self.attend(x, query, segments)
        y: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return x + y.view_as(x)


class LaterLayer(EagleLayer):
    """A layer after the first one: a Llama layer, its rows normed for the attention."""

    def __init__(self, config: EagleConfig, attention: AttentionImpl, opset: int) -> None:
        super().__init__(config, attention, opset)
        self.input_norm = nn.Parameter(torch.empty(config.hidden))

    def attention_inputs(self, x: Tensor) -> Tensor:
        return self.normed(x, self.input_norm)


class EagleModel(DraftModel):
    """The draft phase of an EAGLE head: a pass of the layer for every level of the tree."""

    head: EagleLayer

    def predict(self, x: Tensor, query: Tensor, segments: list[KVSegment], parallel: bool) -> Prediction:
        feature = self.head.features(x, query, segments)
        return Prediction(feature, feature, None)


@register
class EagleHead(DraftHead):
    """The family of EAGLE-1, EAGLE-2 and HASS heads: one layout, of which no checkpoint says how it was trained."""

    variant, title = "eagle", "EAGLE"
    second_guess = False
    config: EagleConfig

    @property
    def dialect(self) -> str:
        return "EAGLE-1, EAGLE-2 or HASS"

    @classmethod
    def recognises(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
        return (
            f"{LAYER}mlp.gate_proj.weight" in shapes
            and f"{LAYER}input_layernorm.weight" not in shapes
            and not any(name.startswith("mlp.") for name in shapes)
        )

    @classmethod
    def read_config(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> EagleConfig:
        check_activation(config)
        layer = read_layer(config)
        layer["qkv_bias"] = f"{LAYER}self_attn.q_proj.bias" in shapes  # no field of theirs says it
        return EagleConfig(**layer, inner=int(config["intermediate_size"]))

    @classmethod
    def expected_shapes(cls, config: EagleConfig) -> dict[str, Shape]:
        return layer_shapes(config, mlp_shapes(config, LAYER))

    def model(self, tree: DraftTree, draft_vocab: int | None, attention: AttentionImpl, opset: int) -> EagleModel:
        return EagleModel(EagleLayer(self.config, attention, opset), tree, draft_vocab)

    def layer_weights(self, dtype: np.dtype) -> dict[str, Weight]:
        stored = self.stored(dtype)
        return {**layer_weights(self.config, stored), **mlp_weights(stored, LAYER, "head.")}
