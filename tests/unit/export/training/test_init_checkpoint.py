"""Published heads to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import tiny
from jakiro_export.errors import ExportError, UsageError
from jakiro_export.training.init_checkpoint import loaded


@pytest.mark.parametrize(
    ("changes", "inner", "mixture", "sentence"),
    [
        ({"num_attention_heads": 3, "head_dim": 8}, None, True, "has heads = 3, but 6 fits the target"),
        ({"intermediate": 96}, 48, True, "has inner = 96, but 48 was asked for"),
        ({"qkv_bias": True}, None, True, "has a bias in its attention"),
        ({"bias": False}, None, True, "has no fc.bias"),
        ({}, None, False, "is a mixture"),
    ],
)
def test_a_head_that_cannot_be_gone_on_with_gets_a_sentence(
    changes: dict[str, object], inner: int | None, mixture: bool, sentence: str, tmp_path: Path
) -> None:
    shape = {"hidden": 48, "heads": 6, "kv_heads": 2, "head_dim": 8, "inner": 48, "norm_eps": 1e-6, "rope_theta": 1e4}
    head = tiny.make_head(tmp_path / "head", **changes)
    with pytest.raises(UsageError, match=sentence):
        loaded(head, shape, inner, mixture)


def test_a_damaged_head_gets_a_sentence(tmp_path: Path) -> None:
    shape = {"hidden": 48, "heads": 6, "kv_heads": 2, "head_dim": 8, "inner": 48, "norm_eps": 1e-6, "rope_theta": 1e4}
    tensors = load_file(tiny.make_head(tmp_path / "head") / "model.safetensors")
    assert loaded(tmp_path / "head", shape, None)[0].inner == 48
    save_file({name: tensor for name, tensor in tensors.items() if name != "fc.bias"}, tmp_path / "head" / "model.safetensors")
    with pytest.raises(ExportError, match=r"lacks the tensor fc.bias, expected with shape \[48\]"):
        loaded(tmp_path / "head", shape, None)
