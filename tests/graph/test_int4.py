"""Weights of four bits: what is written, that GGUF's own are taken as they are, and that a row's result is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

import tiny
from exactness import differs
from jakiro_export.artifact.weights import Array
from jakiro_export.quantization.int4 import Least, Nibbles, Scales
from jakiro_runtime import Engine
from jakiro_runtime.backends import onnxruntime as onnxruntime_backend

WIDE = {"hidden_size": 64, "num_attention_heads": 4}  # groups of 32 fit


def restored(matrix: np.ndarray) -> np.ndarray:
    """What a matrix [out, in] is after it was written."""
    bits, scales, least = (np.concatenate(list(kind(Array(matrix)).panels())) for kind in (Nibbles, Scales, Least))
    assert (bits.dtype, scales.dtype, least.dtype) == (np.uint8, np.float16, np.float16)
    assert bits.shape == Nibbles(Array(matrix)).shape
    assert scales.shape == least.shape == Scales(Array(matrix)).shape
    steps = np.stack([bits & 15, bits >> 4], 3)  # [out / 16, groups, pair, half, 16, 4]
    steps = steps.transpose(0, 4, 1, 2, 3, 5).reshape(len(matrix), -1, 32)
    by_row = [each.swapaxes(1, 2).reshape(len(matrix), -1, 1).astype(np.float32) for each in (scales, least)]
    return (by_row[1] + by_row[0] * steps).reshape(matrix.shape)


def test_the_weights_of_a_q4_1_file_are_taken_as_they_are() -> None:
    random = np.random.default_rng(0)
    scales = random.uniform(1e-4, 0.1, (48, 3, 1)).astype(np.float16).astype(np.float32)
    least = random.uniform(-1, 0, (48, 3, 1)).astype(np.float16).astype(np.float32)
    steps = random.integers(0, 16, (48, 3, 32))
    steps[:, :, 7], steps[:, :, 30] = 0, 15  # such a file's scales come from a group's least and largest
    matrix = (least + scales * steps).reshape(48, 96)
    assert np.array_equal(restored(matrix), matrix)
    matrix[5, 40] += scales[5, 1, 0] / 3  # a control: what is not on the grid moves
    assert not np.array_equal(restored(matrix), matrix)


def test_other_weights_move_by_half_a_step_at_most() -> None:
    matrix = np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32)
    matrix[3] = 0.5
    groups = matrix.reshape(32, 2, 32)
    step = np.ptp(groups, -1, keepdims=True) / 15
    assert (np.abs(restored(matrix).reshape(groups.shape) - groups) <= 0.51 * step + 1e-3 * np.abs(groups).max()).all()
    assert (restored(matrix)[3] == 0.5).all()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4")
    target = tiny.make_target(folder / "target", **WIDE)
    # as a Q4_1 file's: rounding the weights of a random model would make it another one
    weights = load_file(target / "model.safetensors")
    rounded = {name: restored(weight) if ".layers." in name and weight.ndim == 2 else weight for name, weight in weights.items()}
    save_file(rounded, target / "model.safetensors", {"format": "pt"})
    head = tiny.make_head(folder / "head", **WIDE)
    return tiny.make_engine(folder / "engine", target, head, precision="int4", draft_precision="int8")


def test_layers_are_in_four_bits_and_logits_in_bytes(engine: Path) -> None:
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
