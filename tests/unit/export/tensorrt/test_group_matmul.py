"""Int4 products handed to the plugin: the same numbers, read from the same bytes, and only where the plugin takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from jakiro_export.cli.build import main
from jakiro_export.tensorrt import operators
from jakiro_export.tensorrt.group_matmul import NAME, group_matmuls, with_plugin

RANDOM = np.random.default_rng(0)
SIZE_IN, SIZE_OUT = 64, 24


def model(group: int = 32, axis: int = 0, outputs: int = SIZE_OUT, also: str | None = None) -> onnx.ModelProto:
    shape = (SIZE_IN, outputs)
    scales = (SIZE_IN // group, outputs) if axis == 0 else (SIZE_IN, outputs // group)
    weight = helper.make_tensor(
        "w", TensorProto.INT4, shape, RANDOM.integers(0, 256, SIZE_IN * outputs // 2).astype(np.uint8).tobytes(), raw=True
    )
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["m"], axis=axis, block_size=group),
        helper.make_node("MatMul", ["x", "m"], ["y"]),
    ]
    if also is not None:  # another reader of the matrix
        nodes.append(helper.make_node(also, ["x", "m"] if also == "MatMul" else ["m"], ["z"]))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["rows", SIZE_IN if name == "x" else outputs]) for name in "xy"
    ]
    parts = [weight, numpy_helper.from_array(RANDOM.uniform(0.1, 0.2, scales).astype(np.float16), "s")]
    return helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], parts), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )


def test_a_product_becomes_one_node_that_reads_the_same_bytes() -> None:
    plain = model()
    x = RANDOM.standard_normal((3, SIZE_IN)).astype(np.float16)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    (exact,) = ort.InferenceSession(plain.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    made = with_plugin(plain)
    (node,) = made.graph.node
    assert (node.op_type, node.domain, list(node.input), list(node.output)) == (NAME, "jakiro", ["x", "w", "s"], ["y"])
    assert {entry.domain for entry in made.opset_import} == {"", "jakiro"}
    weight = made.graph.initializer[0]
    assert (weight.data_type, list(weight.dims)) == (TensorProto.INT8, [SIZE_IN, SIZE_OUT // 2])
    codes = np.frombuffer(weight.raw_data, np.uint8).reshape(SIZE_IN, -1)
    steps = np.stack([codes & 15, codes >> 4], -1).reshape(SIZE_IN, SIZE_OUT).astype(np.int8)
    steps = np.where(steps > 7, steps - 16, steps)
    scales = numpy_helper.to_array(made.graph.initializer[1]).astype(np.float64)
    np.testing.assert_allclose(exact, x.astype(np.float64) @ (steps * np.repeat(scales, 32, 0)), atol=0.05)


@pytest.mark.parametrize("settings", [{"group": 16}, {"axis": 1, "group": 8}, {"outputs": 20}, {"also": "Identity"}])
def test_what_the_plugin_does_not_take_stays(settings: dict[str, int]) -> None:
    plain = model(**settings)  # type: ignore[arg-type]
    before = plain.SerializeToString()
    assert not group_matmuls(plain)
    assert with_plugin(plain).SerializeToString() == before


def test_a_parser_knows_it_with_the_plugin_alone() -> None:
    made = with_plugin(model())
    assert operators.unparsed(made, "tensorrt", (10, 3), True) == {}
    assert operators.unparsed(made, "tensorrt", (10, 3), False)


def test_it_needs_the_plugin(tmp_path: Path, half_engine: Path) -> None:
    result = CliRunner().invoke(main, [str(half_engine), "--plugin-matmul"])
    assert result.exit_code == 2
    assert "--plugin-matmul needs --plugin" in result.output


def test_a_matrix_with_several_products_is_taken_once() -> None:
    """The draft phase multiplies with the head's matrices on every level."""
    plain = model(also="MatMul")
    again = helper.make_node("DequantizeLinear", ["w", "s"], ["m2"], axis=0, block_size=32)
    plain.graph.node.extend([again, helper.make_node("MatMul", ["x", "m2"], ["z2"])])
    made = with_plugin(plain)
    assert [node.op_type for node in made.graph.node] == [NAME] * 3
    assert list(made.graph.initializer[0].dims) == [SIZE_IN, SIZE_OUT // 2]
