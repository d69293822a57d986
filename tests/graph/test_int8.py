"""Row-by-row int8: what is written, and that a row's result is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import tiny
from exactness import differs
from jakiro_export.artifact.weights import Array
from jakiro_export.passes import quantize
from jakiro_export.quantization.int8 import Channels, ChannelScales
from jakiro_runtime import Engine
from jakiro_runtime.backends import onnxruntime as onnxruntime_backend


def panels(weight: object) -> np.ndarray:
    return np.concatenate(list(weight.panels()))  # type: ignore[attr-defined]


def test_weights_are_rounded_by_channel() -> None:
    matrix = np.random.default_rng(0).standard_normal((7, 33)).astype(np.float32)
    matrix[3] = 0
    matrix[4] *= 1000
    stored, scales = panels(Channels(Array(matrix))), panels(ChannelScales(Array(matrix)))
    assert stored.dtype == np.uint8
    back = (stored.astype(np.float32) - 128) * scales[:, None]
    assert (np.abs(back - matrix) <= scales[:, None] * 0.5001).all()
    assert (back[3] == 0).all()


def test_every_product_is_in_bytes_and_a_row_is_its_own(tiny_int8: Path) -> None:
    kinds = [node.op_type for node in onnx.load(tiny_int8 / "target.onnx", load_external_data=False).graph.node]
    layers = 3
    for kind, count in (
        ("NormRowInt8MatMul", 2 * layers),  # q k v; gate and up
        ("RowInt8MatMulAdd", layers),  # o
        ("SwiGluRowInt8MatMulAdd", layers),  # down
        ("RowInt8MatMul", 1),  # logits
    ):
        assert kinds.count(kind) == count
    assert kinds.count("TreeAttention") == layers
    assert not {"MatMul", "Gemm"} & set(kinds)
    engine = Engine.open(tiny_int8)
    assert engine.manifest.bitwise
    assert engine.manifest.precision == {"target": "int8", "draft": "int8"}
    assert not differs(engine)


@pytest.mark.slow
def test_one_scale_for_all_rows_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_target: Path, tiny_head: Path
) -> None:
    by_row = quantize._function

    def for_all_rows(name: str, opset: int) -> onnx.FunctionProto:
        body = by_row(name, opset)
        largest = next(node for node in body.node if node.op_type == "ReduceMax")
        del largest.input[1:]  # every axis
        return body

    monkeypatch.setattr(quantize, "_function", for_all_rows)
    monkeypatch.setattr(onnxruntime_backend, "library", lambda: None)
    out = tiny.make_engine(tmp_path / "engine", tiny_target, tiny_head, precision="int8", verify=False)
    assert differs(Engine.open(out))
