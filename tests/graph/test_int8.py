"""Graphs in int8: which matmuls are, and that a row's result is its own."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import tiny
from exactness import differs
from jakiro_export.ops import registry
from jakiro_runtime import Engine
from jakiro_runtime.backends import onnxruntime as onnxruntime_backend


def test_every_matmul_is_in_int8_and_a_row_is_its_own(tiny_int8: Path) -> None:
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
    by_row = registry.bodies

    def for_all_rows(model: ir.Model) -> list[onnx.FunctionProto]:
        bodies = by_row(model)
        for body in bodies:
            if "RowInt8MatMul" in body.name:
                largest = next(node for node in body.node if node.op_type == "ReduceMax")
                del largest.input[1:]  # every axis
        return bodies

    monkeypatch.setattr(registry, "bodies", for_all_rows)
    monkeypatch.setattr(onnxruntime_backend, "library", lambda: None)
    out = tiny.make_engine(tmp_path / "engine", tiny_target, tiny_head, precision="int8", verify=False)
    assert differs(Engine.open(out))
