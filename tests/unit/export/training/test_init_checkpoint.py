"""Published heads to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

import tiny
from jakiro_export.errors import ExportError, UsageError
from jakiro_export.training.init_checkpoint import loaded
from jakiro_export.training.sizes import Sizes

SIZES = Sizes(48, 6, 2, 8, 48, 1e-6, 1e4)


@pytest.mark.parametrize(
    ("changes", "inner", "sentence"),
    [
        ({"num_attention_heads": 3, "head_dim": 8}, None, "has heads = 3, but 6 fits the target"),
        ({"intermediate": 96}, 48, "has inner = 96, but 48 was asked for"),
        ({"qkv_bias": True}, None, "has layers.0.self_attn.k_proj.bias"),
        ({"bias": False}, None, "lacks fc.bias"),
    ],
)
def test_a_head_that_cannot_be_gone_on_with_gets_a_sentence(
    changes: dict[str, object], inner: int | None, sentence: str, tmp_path: Path
) -> None:
    head = tiny.make_head(tmp_path / "head", **changes)
    with pytest.raises(UsageError, match=sentence):
        loaded(head, SIZES, inner)


def test_a_damaged_head_gets_a_sentence(tmp_path: Path) -> None:
    tensors = load_file(tiny.make_head(tmp_path / "head") / "model.safetensors")
    assert loaded(tmp_path / "head", SIZES, None)[0].sizes.inner == 48
    save_file({name: tensor for name, tensor in tensors.items() if name != "fc.bias"}, tmp_path / "head" / "model.safetensors")
    with pytest.raises(ExportError, match=r"lacks the tensor fc.bias, expected with shape \[48\]"):
        loaded(tmp_path / "head", SIZES, None)
