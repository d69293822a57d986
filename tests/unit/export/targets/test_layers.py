"""Layers that are alike are traced once. Every tiny engine has three layers, so its checks against torch cover the copying."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from transformers import Qwen2Config

import tiny
from jakiro_export.errors import ExportError
from jakiro_export.targets import layers as repeat
from jakiro_export.targets.graph import TargetGraph
from jakiro_export.targets.models import build_meta
from jakiro_export.targets.trace import trace, trace_all_layers


def build(**changes: object) -> torch.nn.Module:
    sizes = {"vocab_size": tiny.VOCAB, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 5,
             "num_attention_heads": 6, "num_key_value_heads": 2}  # fmt: skip
    return build_meta(Qwen2Config(**{**sizes, **changes}), torch.float32)


@pytest.mark.slow
def test_a_copied_layer_is_what_tracing_it_gives() -> None:
    copied = trace(TargetGraph(build(), "bitwise"), 23)
    traced = trace_all_layers(TargetGraph(build(), "bitwise"), 23)
    assert sum("layers.4." in name for name in copied.graph.initializers) > 5
    assert set(copied.graph.initializers) == set(traced.graph.initializers)
    for values in ("inputs", "outputs"):
        one, two = (getattr(model.graph, values) for model in (copied, traced))
        assert [(value.name, str(value.shape)) for value in one] == [(value.name, str(value.shape)) for value in two]

    def reads(model: ir.Model) -> list[tuple[str, list[str]]]:
        known = set(model.graph.initializers.values())
        names = [[value.name for value in node.inputs if value in known] for node in model.graph]
        return sorted((node.op_type, list(map(str, name))) for node, name in zip(model.graph, names, strict=True) if name)

    assert reads(copied) == reads(traced)


def test_layers_that_differ_are_all_traced() -> None:
    found = repeat.layer_list(build())
    assert found is not None
    assert found[0] == "model.layers"
    assert repeat.are_alike(found[1])
    mixed = build(use_sliding_window=True, sliding_window=64, max_window_layers=2)
    layers = repeat.layer_list(mixed)
    assert layers is not None
    assert not repeat.are_alike(layers[1])
    layers[1][3].mlp.gate_proj.out_features = 7  # type: ignore[index,union-attr,operator]
    assert not repeat.are_alike(layers[1])


@pytest.mark.slow
def test_layers_that_hang_together_otherwise_are_refused() -> None:
    short = build_meta(repeat.shortened(build().config), torch.float32)
    traced = trace_all_layers(TargetGraph(short, "bitwise"), 23)
    with pytest.raises(ExportError, match="reads 0 streams"):
        repeat.repeat_last_layer(traced, "model.other.layers", 5)
