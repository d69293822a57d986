"""Graphs in int4: which matmuls are, and that a row's result is its own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from safetensors.numpy import load_file, save_file

import dequantize
import tiny
from exactness import differs
from jakiro_runtime import Engine
from jakiro_runtime.backends import onnxruntime as onnxruntime_backend

WIDE = {"hidden_size": 64, "num_attention_heads": 4}  # groups of 32 fit


pytestmark = pytest.mark.slow  # an export of its own


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4")
    target = tiny.make_target(folder / "target", **WIDE)
    # as a Q4_1 file's: rounding the weights of a random model would make it another one
    weights = load_file(target / "model.safetensors")
    rounded = {
        name: dequantize.int4(weight) if ".layers." in name and weight.ndim == 2 else weight for name, weight in weights.items()
    }
    save_file(rounded, target / "model.safetensors", {"format": "pt"})
    head = tiny.make_head(folder / "head", **WIDE)
    return tiny.make_engine(folder / "engine", target, head, precision="int4", draft_precision="int8")


def test_layers_are_in_int4_and_logits_in_int8(engine: Path) -> None:
    kinds = [node.op_type for node in onnx.load(engine / "target.onnx", load_external_data=False).graph.node]
    layers = 3
    for kind, count in (
        ("NormRowInt4MatMul", 2 * layers),
        ("RowInt4MatMulAdd", layers),
        ("SwiGluRowInt4MatMulAdd", layers),
        ("RowInt8MatMul", 1),
    ):
        assert kinds.count(kind) == count
    opened = Engine.open(engine)
    assert opened.manifest.bitwise
    assert opened.manifest.precision == {"target": "int4", "draft": "int8"}


@pytest.mark.parametrize("kernels", [True, False])
def test_a_row_is_its_own(engine: Path, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr(onnxruntime_backend, "library", lambda: None)
    assert not differs(Engine.open(engine))
