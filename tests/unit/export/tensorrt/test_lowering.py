"""Norms and rotary embeddings as primitives: the same values, in an old parser's operators, the norm's square in float32."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from jakiro_export.errors import ExportError
from jakiro_export.tensorrt import accuracy, graphs
from jakiro_export.tensorrt.lowering import lower
from jakiro_export.tensorrt.profiles import Limits, profiles
from jakiro_runtime.format.manifest import Manifest

HIDDEN = 16


def model(kind: str, dtype: int, **attributes: Any) -> onnx.ModelProto:
    """One node: a norm of [2, 3, 16], or a rotary embedding of [2, 4, 3, 16]."""
    shapes: dict[str, list[int | str]] = {"x": ["batch", "rows", HIDDEN], "weight": [HIDDEN]}
    if kind == "RotaryEmbedding":
        angles = ["batch", "rows", HIDDEN // 2]
        shapes = {"x": ["batch", 4, "rows", HIDDEN], "cos": angles, "sin": angles}
    inputs = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in shapes.items()]
    node = helper.make_node(kind, list(shapes), ["y"], **attributes)
    output = helper.make_tensor_value_info("y", dtype, shapes["x"])
    return helper.make_model(
        helper.make_graph([node], "one", inputs, [output]), opset_imports=[helper.make_opsetid("", 23)], ir_version=11
    )


def values(proto: onnx.ModelProto, scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    lengths = {"batch": 2, "rows": 3}
    found = {}
    for tensor in proto.graph.input:
        shape = [dim.dim_value or lengths[dim.dim_param] for dim in tensor.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
        found[tensor.name] = (scale * random.standard_normal(shape)).astype(dtype)
    return found


def run(proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize(("kind", "attributes"), [("RMSNormalization", {"axis": -1, "epsilon": 1e-6}), ("RotaryEmbedding", {})])
def test_a_lowered_operator_computes_the_same(kind: str, attributes: dict[str, Any], dtype: int) -> None:
    given = model(kind, dtype, **attributes)
    inputs = values(given)
    expected = run(given, inputs)
    lowered = lower(given)
    onnx.checker.check_model(lowered, full_check=True)
    assert kind not in {node.op_type for node in lowered.graph.node}
    np.testing.assert_allclose(run(lowered, inputs), expected, rtol=1e-6 if dtype == TensorProto.FLOAT else 2e-3, atol=1e-3)


def test_a_norm_of_large_halves_does_not_overflow() -> None:
    """300 squared is no half any more."""
    given = model("RMSNormalization", TensorProto.FLOAT16, axis=-1, epsilon=1e-6)
    inputs = values(given, 300.0)
    found = run(lower(given), inputs)
    x, weight = (inputs[name].astype(np.float64) for name in ("x", "weight"))
    np.testing.assert_allclose(found, x / np.sqrt((x**2).mean(-1, keepdims=True)) * weight, rtol=5e-3, atol=0.5)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("RMSNormalization", {"axis": 1}),
        ("RotaryEmbedding", {"interleaved": 1}),
        ("RotaryEmbedding", {"rotary_embedding_dim": 8}),
    ],
)
def test_another_form_is_refused(kind: str, attributes: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match=f"{kind}.*export the engine again"):
        lower(model(kind, TensorProto.FLOAT, **attributes))


@pytest.mark.parametrize("name", ["target", "draft"])
def test_a_lowered_graph_computes_the_same(half_engine: Path, tmp_path: Path, name: str) -> None:
    """Whole graphs in half precision, within what the check after a build allows."""
    graph, manifest = graphs.read(half_engine / f"{name}.onnx"), Manifest.read(half_engine)
    lowered = graphs.parsed_model(graph, plugin=False, opset_23=False)
    assert [entry.version for entry in lowered.opset_import] == [20]
    assert not {"RMSNormalization", "RotaryEmbedding"} & {node.op_type for node in lowered.graph.node}
    for file in half_engine.glob("*.data"):
        shutil.copyfile(file, tmp_path / file.name)
    (tmp_path / "lowered.onnx").write_bytes(lowered.SerializeToString())
    onnx.checker.check_model(str(tmp_path / "lowered.onnx"))
    inputs = accuracy.feed(graph, profiles(name, graph, manifest, Limits(chunk=16))[0], manifest.model.vocab_size)
    contract = manifest.target_contract if name == "target" else manifest.draft_contract
    reference, ours = (accuracy.onnxruntime_runner(path, contract) for path in (graph.path, tmp_path / "lowered.onnx"))
    assert all(check["passed"] for check in accuracy.compare(reference, ours, inputs, "fp16"))


_LAYERS = """
import sys, tensorrt_rtx_bindings as trt
class Logger(trt.ILogger):
    def __init__(self): trt.ILogger.__init__(self)
    def log(self, severity, message): pass
logger = Logger()
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
assert trt.OnnxParser(network, logger).parse(sys.stdin.buffer.read())
for layer in map(network.get_layer, range(network.num_layers)):
    print(layer.type.name, layer.get_output(0).dtype.name)
"""


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_a_parser_squares_in_float32(rtx: list[Path], dtype: int, lowered: bool) -> None:
    """What TensorRT-RTX's parser makes of both forms: up to the mean everything is float32."""
    if not rtx:
        pytest.skip("TensorRT-RTX is installed under another name than its wheels have")
    given = model("RMSNormalization", dtype, axis=-1, epsilon=1e-6)
    proto = lower(given) if lowered else given
    done = subprocess.run([sys.executable, "-c", _LAYERS], input=proto.SerializeToString(), capture_output=True, env=os.environ)
    assert done.returncode == 0, done.stderr.decode()
    layers = [line.split() for line in done.stdout.decode().splitlines()]
    before = layers[: next(number for number, (kind, _) in enumerate(layers) if kind == "REDUCE") + 1]
    assert [kind for kind, _ in before] == ["CAST", "ELEMENTWISE", "REDUCE"]
    assert {dtype for _, dtype in before} == {"FLOAT"}
