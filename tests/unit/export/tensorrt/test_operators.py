"""Whether a version's parser has every operator, told by tables before anything is copied."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from jakiro_export.cli.build import main
from jakiro_export.tensorrt import graphs, operators, versions


def check(directory: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [str(directory), "--check", *arguments])


@pytest.mark.parametrize(
    ("version", "native"),
    [
        ("10.3.0", False),
        ("10.7", False),
        ("10.13.3.9", False),
        ("10.14.1", False),
        ("10.15.1.29", True),
        ("10.16", True),
        ("11.4", True),
    ],
)
def test_norms_and_rotary_embeddings_by_version(half_engine: Path, version: str, native: bool) -> None:
    numbers = versions.parse(version)
    assert versions.parses_opset_23("tensorrt", numbers) == native
    for name in ("target", "draft"):
        graph = graphs.read(half_engine / f"{name}.onnx")
        as_exported = operators.unparsed(graphs.parsed_model(graph, False, opset_23=True), "tensorrt", numbers, plugin=False)
        assert set(as_exported) == (set() if native else {"RMSNormalization", "RotaryEmbedding"})
        assert operators.unparsed(graphs.parsed_model(graph, False, opset_23=native), "tensorrt", numbers, plugin=False) == {}


@pytest.mark.parametrize(
    "arguments", [["--sm", "sm87"], ["--sm", "sm110"], ["--sm", "sm87", "--tensorrt", "11.4"], ["--sm", "sm86"]]
)
def test_an_engine_directory_parses_everywhere(half_engine: Path, arguments: tuple[str, ...]) -> None:
    result = check(half_engine, *arguments)
    assert result.exit_code == 0, result.output
    assert "has every operator" in result.output
    assert ("as primitives" in result.output) == (list(arguments) in (["--sm", "sm87"], ["--sm", "sm110"]))


def test_an_operator_that_no_parser_has(half_engine: Path, tmp_path: Path) -> None:
    engine = Path(shutil.copytree(half_engine, tmp_path / "engine"))
    model = onnx.load(str(engine / "target.onnx"), load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Unique"
    (engine / "target.onnx").write_bytes(model.SerializeToString())
    result = check(engine, "--sm", "sm87")
    assert result.exit_code == 1
    assert "TensorRT 10.3 does not parse Unique (1 times in target.onnx)" in result.output


def test_expert_dispatch_needs_its_plugin(half_engine: Path) -> None:
    model = graphs.parsed_model(graphs.read(half_engine / "draft.onnx"), plugin=True, opset_23=False)
    assert set(operators.unparsed(model, "tensorrt", (10, 3), plugin=False)) == {"ExpertDispatch"}
    assert operators.unparsed(model, "tensorrt", (10, 3), plugin=True) == {}


@pytest.mark.parametrize(
    ("arguments", "word"), [([], "--sm sm87"), (["--sm", "sm87", "--tensorrt", "8.6"], "10.3 to 11.x is expected")]
)
def test_wrong_calls(half_engine: Path, arguments: list[str], word: str) -> None:
    result = check(half_engine, *arguments)
    assert result.exit_code != 0
    assert word in result.output


_SUPPORTED = """
import sys, tensorrt_rtx_bindings as trt
class Logger(trt.ILogger):
    def __init__(self): trt.ILogger.__init__(self)
    def log(self, severity, message): pass
logger = Logger()
builder = trt.Builder(logger)
parser = trt.OnnxParser(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)), logger)
print(*[name for name in sys.argv[1:] if not parser.supports_operator(name)])
"""


def test_the_table_agrees_with_a_real_parser(rtx: list[Path]) -> None:
    """TensorRT-RTX's, which answers by name; of the whole table, not only of what our graphs use."""
    if not rtx:
        pytest.skip("TensorRT-RTX is installed under another name than its wheels have")
    names = sorted(operators.parsed("tensorrt-rtx", (1, 7)))
    done = subprocess.run([sys.executable, "-c", _SUPPORTED, *names], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
