"""Gumiho heads: a short transformer for the first tokens, an MLP for each of the later ones (arXiv 2503.10135)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jakiro_export.artifact.weights import Weight
from jakiro_export.heads.config import Shape, TreeShape
from jakiro_export.heads.eagle import EagleConfig, EagleLayer, LaterLayer, check_activation, mlp_shapes, mlp_weights
from jakiro_export.heads.family import DraftHead
from jakiro_export.heads.layer import attention_shapes, attention_weights, fc_shapes, read_layer
from jakiro_export.heads.model import DraftModel, DraftTree, Prediction
from jakiro_export.heads.registry import register
from jakiro_export.heads.trees import Guessing, SerialThenParallel
from jakiro_export.ops.attention import KVSegment
from jakiro_export.precisions import AttentionImpl

_NESTED = "mlp.mlp."
_MLP = re.compile(r"mlp\.(\d+)\.(\d+)\.linear\.weight")


def _plain(name: str) -> str:
    return name.replace(_NESTED, "mlp.", 1) if name.startswith(_NESTED) else name


@dataclass(frozen=True, kw_only=True)
class GumihoConfig(EagleConfig):
    """The sizes of a Gumiho head.

    mlps: guesses of the parallel step
    blocks: of each MLP
    nested: its tensors are called as the published code has them in memory, not as it stores them
    """

    mlps: int
    blocks: int
    nested: bool

    def mlp_prefix(self, mlp: int, block: int) -> str:
        """Of a block's tensors."""
        return f"{'mlp.' if self.nested else ''}mlp.{mlp}.{block}.linear."


class GumihoModel(DraftModel, Guessing):
    """The draft phase of a Gumiho head. Its layers are the transformer, of the first of which rows are not normed."""

    head: EagleLayer

    def __init__(
        self, config: GumihoConfig, tree: DraftTree, draft_vocab: int | None, attention: AttentionImpl, opset: int
    ) -> None:
        first = EagleLayer(config, attention, opset)
        *lower, last = [first, *(LaterLayer(config, attention, opset) for _ in range(1, config.layers))]
        super().__init__(last, tree, draft_vocab, lower)
        width = config.hidden
        self.mlps = nn.ModuleList(
            nn.ModuleList(nn.Linear(width if block else 2 * width, width) for block in range(config.blocks))
            for _ in range(config.mlps)
        )

    def predict(self, x: Tensor, query: Tensor, segments: list[KVSegment], parallel: bool) -> Prediction:
        feature = self.head.features(x, query, segments)
        return Prediction(feature, feature, None)

    def guess(self, tokens: tuple[Tensor, Tensor], features: tuple[Tensor, Tensor], count: int) -> Tensor:
        read = torch.cat([self.embed(*each) for each in zip(tokens, features, strict=True)], -1)
        found = []
        for number in range(count):
            blocks: list[nn.Module] = list(self.mlps[number])  # type: ignore[call-overload]
            x = nn.functional.silu(blocks[0](read))
            for block in blocks[1:]:
                x = x + nn.functional.silu(block(x))
            found.append(x)
        return torch.stack(found, 2)


@register
class GumihoHead(DraftHead):
    """The family of Gumiho heads."""

    variant, title = "gumiho", "Gumiho"
    config: GumihoConfig

    @classmethod
    def recognises(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
        return "layers.0.mlp.gate_proj.weight" in shapes and any(_MLP.match(_plain(name)) for name in shapes)

    @classmethod
    def read_config(cls, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> GumihoConfig:
        check_activation(config)
        layer = read_layer(config)
        layer["qkv_bias"] = "layers.0.self_attn.q_proj.bias" in shapes
        layer["layers"] = sum(1 for n in range(64) if f"layers.{n}.self_attn.q_proj.weight" in shapes)
        blocks = [match.groups() for match in map(_MLP.match, map(_plain, shapes)) if match]
        return GumihoConfig(
            **layer,
            inner=int(config["intermediate_size"]),
            mlps=1 + max(int(mlp) for mlp, _ in blocks),
            blocks=1 + max(int(block) for _, block in blocks),
            nested=any(name.startswith(_NESTED) for name in shapes),
        )

    @classmethod
    def expected_shapes(cls, config: GumihoConfig) -> dict[str, Shape]:
        c = config
        shapes = fc_shapes(c)
        for number in range(c.layers):
            prefix = f"layers.{number}."
            shapes.update({**attention_shapes(c, prefix, c.hidden), **mlp_shapes(c, prefix)})
            if number:
                shapes[f"{prefix}input_layernorm.weight"] = (c.hidden,)
        for mlp in range(c.mlps):
            for block in range(c.blocks):
                shapes[f"{c.mlp_prefix(mlp, block)}weight"] = (c.hidden, c.hidden if block else 2 * c.hidden)
                shapes[f"{c.mlp_prefix(mlp, block)}bias"] = (c.hidden,)
        return shapes

    @property
    def summary(self) -> str:
        return f"{super().summary}, {self.config.layers} layers and {self.config.mlps} MLPs"

    def tree(self, shape: TreeShape) -> DraftTree:
        return SerialThenParallel(replace(shape, parallel=False), self.config.mlps)

    def model(self, tree: DraftTree, draft_vocab: int | None, attention: AttentionImpl, opset: int) -> GumihoModel:
        return GumihoModel(self.config, tree, draft_vocab, attention, opset)

    def layer_weights(self, dtype: np.dtype) -> dict[str, Weight]:
        c, stored = self.config, self.stored(dtype)
        weights: dict[str, Weight] = {name: stored(name) for name in fc_shapes(c)}
        for number in range(c.layers):
            prefix, place = f"layers.{number}.", "head." if number == c.layers - 1 else f"lower.{number}."
            weights.update({**attention_weights(c, stored, prefix, place), **mlp_weights(stored, prefix, place)})
            if number:
                weights[f"{place}input_norm"] = stored(f"{prefix}input_layernorm.weight")
        for mlp in range(c.mlps):
            for block in range(c.blocks):
                for kind in ("weight", "bias"):
                    weights[f"mlps.{mlp}.{block}.{kind}"] = stored(f"{c.mlp_prefix(mlp, block)}{kind}")
        return weights
