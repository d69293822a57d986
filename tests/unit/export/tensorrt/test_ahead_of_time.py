"""Engines made by TensorRT-RTX on this machine, without a GPU: the real parser and builder take both graphs.

That the builder accepts a graph is what is shown; the engines are not run on a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

import tiny
from jakiro_export.cli.build import main
from jakiro_export.errors import ExportError
from jakiro_export.tensorrt import building, graphs, memory
from jakiro_export.tensorrt.profiles import Limits, profiles
from jakiro_export.tensorrt.worker import BuildRequest
from jakiro_runtime.format.integrity import check_integrity
from jakiro_runtime.format.manifest import Manifest

OLDEST, NEWEST = building.AHEAD_OF_TIME[0], building.AHEAD_OF_TIME[-1]
every_gpu = pytest.mark.parametrize(
    "sm",
    [sm if sm in (OLDEST, NEWEST) else pytest.param(sm, marks=pytest.mark.exhaustive) for sm in building.AHEAD_OF_TIME],
)


def build(engine: Path, *arguments: str) -> None:
    result = CliRunner().invoke(main, [str(engine), *arguments])
    assert result.exit_code == 0, result.output


def check_record(engine: Path, sm: int) -> None:
    """engine.json lists both engines, and what it lists is there."""
    manifest = Manifest.read(engine)
    check_integrity(manifest, engine, full=True)
    entry = manifest.extra["tensorrt"][f"sm{sm}"]
    assert entry["runtime"] == "tensorrt-rtx"
    assert entry["ahead_of_time"] is True
    for name in ("target", "draft"):
        file = entry["graphs"][name]
        assert file == f"tensorrt/sm{sm}/{name}.engine"
        assert file in manifest.files
        assert (engine / file).stat().st_size == entry["builds"][name]["engine_bytes"]
        assert [profile["name"] for profile in entry["profiles"][name]] == ["tree", "prompt"]
        graph = graphs.read(engine / manifest.graphs[name])
        need = memory.estimate(graph, profiles(name, graph, manifest, Limits()), 1 << 30, on_device=False)
        assert entry["builds"][name]["peak_bytes"] < need.host, "the estimate that was made before it started"


def test_the_tiny_engine_for_an_rtx_30(engine: Path, rtx: list[Path]) -> None:
    build(engine, "--ahead-of-time", "sm86")
    check_record(engine, 86)
    assert sorted(file.name for file in (engine / "tensorrt").iterdir()) == ["sm86"], "nothing unfinished is left"


@pytest.mark.slow
@every_gpu
def test_the_tiny_engine_for_every_gpu(engine: Path, rtx: list[Path], sm: int) -> None:
    build(engine, "--ahead-of-time", f"sm{sm}")
    check_record(engine, sm)


@pytest.mark.slow
def test_bfloat16_for_every_gpu_that_has_it(tmp_path: Path, tiny_target: Path, tiny_head: Path, rtx: list[Path]) -> None:
    engine = tiny.make_engine(tmp_path / "engine", tiny_target, tiny_head, precision="bf16", verify=False)
    build(engine, "--ahead-of-time", ",".join(f"sm{sm}" for sm in building.AHEAD_OF_TIME if sm >= 80))
    for sm in building.AHEAD_OF_TIME[1:]:
        check_record(engine, sm)
    with pytest.raises(ExportError, match="bfloat16.*sm80 or newer"):
        building.plan(engine, Manifest.read(engine), "tensorrt-rtx", [75], building.Settings())
    with pytest.raises(ExportError, match="Cannot compile for.*sm75"):  # and so says the builder, of one among others
        building.run_request(replace(request(engine, tmp_path), compute_capabilities=[75, 86]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda folder: tiny.make_eagle_head(folder, biases=True),
        lambda folder: tiny.make_eagle3_head(folder, "speculators", layers=2, eagle_aux_hidden_state_layer_ids=[0, 1, 3]),
        tiny.make_gumiho_head,
        lambda folder: tiny.make_jakiro3_head(folder, aux_hidden_state_layer_ids=[0, 1, 3]),
    ],
    ids=["eagle", "eagle3", "gumiho", "jakiro3"],
)
def test_another_head_for_an_rtx_30(tmp_path: Path, tiny_target: Path, rtx: list[Path], make: Callable[[Path], Path]) -> None:
    head = make(tmp_path / "head")
    engine = tiny.make_engine(tmp_path / "engine", tiny_target, head, precision="fp16", verify=False)
    build(engine, "--ahead-of-time", "sm86")
    check_record(engine, 86)


@pytest.mark.slow
def test_building_again_replaces_and_building_for_another_gpu_adds(engine: Path, rtx: list[Path]) -> None:
    build(engine, "--ahead-of-time", "sm86,sm120")
    build(engine, "--ahead-of-time", "sm86", "--chunk", "32")
    check_record(engine, 86)
    check_record(engine, 120)
    entries = Manifest.read(engine).extra["tensorrt"]
    assert entries["sm86"]["profiles"]["target"][1]["axes"]["rows"] == [1, 32, 32]
    assert entries["sm120"]["profiles"]["target"][1]["axes"]["rows"] == [1, 128, 128]


def test_stripping_weights_needs_a_driver(engine: Path, tmp_path: Path, rtx: list[Path]) -> None:
    """Why jakiro-build refuses --strip-weights ahead of time. Should this fail one day, it can stop doing so."""
    with pytest.raises(ExportError, match="CUDA_SUCCESS"):
        building.run_request(replace(request(engine, tmp_path), strip_weights=True))


@pytest.mark.slow
def test_the_form_for_jetpack_6_builds_too(tmp_path: Path, tiny_jetpack_6: Path, rtx: list[Path]) -> None:
    """Opset 20, its norms and rotary embeddings written as primitives: what TensorRT 10.3 parses. Here RTX does."""
    engine = Path(shutil.copytree(tiny_jetpack_6, tmp_path / "engine"))
    build(engine, "--ahead-of-time", "sm89")
    check_record(engine, 89)


SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.fixture(scope="module", params=[3, pytest.param(30, marks=pytest.mark.exhaustive)])
def smollm2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of SmolLM2's sizes and so many layers in fp16, and a head: the builder does not care what the weights are."""
    from jakiro_export.cli.export import main as export

    folder = tmp_path_factory.mktemp("smollm2")
    target, head = (
        tiny.make_target(folder / "target", layers=request.param, **SMOLLM2),
        tiny.make_head(folder / "head", **SMOLLM2),
    )
    out = folder / "engine"
    arguments = ["--draft", str(head), "--target", str(target), "--precision", "fp16", "--no-verify", "--out", str(out)]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.slow
def test_smollm2_for_every_gpu(smollm2: Path, rtx: list[Path]) -> None:
    """One engine a graph, as a user would build for all of them; the tiny one was built for each by itself."""
    build(smollm2, "--ahead-of-time", ",".join(f"sm{sm}" for sm in building.AHEAD_OF_TIME), "--max-context", "2048")
    for sm in building.AHEAD_OF_TIME:
        check_record(smollm2, sm)
    engines = {(smollm2 / "tensorrt" / f"sm{sm}" / "target.engine").stat().st_ino for sm in building.AHEAD_OF_TIME}
    assert len(engines) == 1, "one file, under six names"


# What must not work: the builder looks at what it is given.


def request(engine: Path, folder: Path, name: str = "draft") -> BuildRequest:
    manifest = Manifest.read(engine)
    steps = building.plan(engine, manifest, "tensorrt-rtx", [86], building.Settings(Limits(chunk=16)))
    step = next(step for step in steps if step.name == name)
    model = folder / "model.onnx"
    model.write_bytes(graphs.parsed_model(step.graph, False, True).SerializeToString())
    return building.request(step, model, folder)


def test_a_request_without_profiles(engine: Path, tmp_path: Path, rtx: list[Path]) -> None:
    with pytest.raises(ExportError, match="no optimization profile"):
        building.run_request(replace(request(engine, tmp_path), profiles=[]))
    assert not (tmp_path / "draft.engine").exists()


def test_a_profile_without_one_of_the_inputs(engine: Path, tmp_path: Path, rtx: list[Path]) -> None:
    asked = request(engine, tmp_path)
    profile = {name: shapes for name, shapes in asked.profiles[0].items() if name != "past_key"}
    with pytest.raises(ExportError, match="past_key"):
        building.run_request(replace(asked, profiles=[profile]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shapes: [[*shape[:-1], shape[-1] + 1] for shape in shapes], "past_key.*tensor has 8"),
        (lambda shapes: [shape[:-1] for shape in shapes], "past_key has 4 dimensions but profile 0 has 3"),
        (lambda shapes: shapes[::-1], "do not follow each other"),
    ],
)
def test_a_profile_of_the_wrong_shape(
    engine: Path, tmp_path: Path, rtx: list[Path], change: Callable[[list[list[int]]], list[list[int]]], words: str
) -> None:
    asked = request(engine, tmp_path)
    wrong = {**asked.profiles[0], "past_key": change(asked.profiles[0]["past_key"])}
    with pytest.raises(ExportError, match=words):
        building.run_request(replace(asked, profiles=[wrong]))
    assert not (tmp_path / "draft.engine").exists()


def test_an_input_of_the_wrong_type(engine: Path, tmp_path: Path, rtx: list[Path]) -> None:
    """Strongly typed: a cache in float where the graph multiplies halves is no graph."""
    asked = request(engine, tmp_path)
    model = onnx.load(asked.model, load_external_data=False)
    cache = next(value for value in model.graph.input if value.name == "past_key")
    cache.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    Path(asked.model).write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="Half and `B` is of type Float"):
        building.run_request(asked)


def test_a_graph_with_an_operator_that_does_not_exist(engine: Path, tmp_path: Path, rtx: list[Path]) -> None:
    step = building.plan(engine, Manifest.read(engine), "tensorrt-rtx", [86], building.Settings())[1]
    next(node for node in step.graph.model.graph.node if node.op_type == "MatMul").op_type = "MatMuddle"
    with pytest.raises(ExportError, match="parser refuses") as raised:
        building.run(step, tmp_path)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


# A builder that dies takes its own process with it, and the user reads why.


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV.*draft.onnx.*last words"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ran out of memory"),
        ("os._exit(3)", "status 3.*last words"),
    ],
)
def test_a_builder_that_dies(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: str, words: str) -> None:
    module = tmp_path / "modules" / "tensorrt_rtx.py"
    module.parent.mkdir()
    module.write_text(
        "import os, signal, sys\n__version__ = '1.7.1'\n"
        "class ILogger:\n    class Severity: pass\n"
        f"def Builder(logger):\n    print('last words', file=sys.stderr, flush=True)\n    {deed}\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(module.parent), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(ExportError, match=words):
        building.run_request(request(engine, tmp_path))


def test_a_failed_build_leaves_what_was_there(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "run", lambda step, folder: (_ for _ in ()).throw(ExportError("no")))
    before = json.loads((engine / "engine.json").read_text())
    steps = building.plan(engine, Manifest.read(engine), "tensorrt-rtx", [86], building.Settings())
    with pytest.raises(ExportError, match="no"):
        building.build(engine, steps, lambda text: None)
    assert json.loads((engine / "engine.json").read_text()) == before
    assert not os.path.lexists(engine / "tensorrt")


# Quantised precisions: one of them here, each for every GPU that has its types in a scheduled run; others are refused before.

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


def quantised(folder: Path, precision: str, **settings: object) -> Path:
    target, head = tiny.make_target(folder / "target", layers=2, **WIDE), tiny.make_head(folder / "head", **WIDE)
    return tiny.make_engine(folder / "engine", target, head, precision=precision, verify=False, **settings)


@pytest.mark.slow
def test_int4_weights_for_an_rtx_30(tmp_path: Path, rtx: list[Path]) -> None:
    engine = quantised(tmp_path, "w4a16")
    build(engine, "--ahead-of-time", "sm86", "--chunk", "32", "--max-context", "512")
    check_record(engine, 86)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("precision", "compute_capabilities"),
    [("w4a16", "sm89,sm120"), ("w8a8", "sm86,sm89,sm120"), ("fp8", "sm89,sm120"), ("nvfp4", "sm120")],
)
def test_quantised_engines_for_the_gpus_that_have_their_types(
    tmp_path: Path, precision: str, compute_capabilities: str, rtx: list[Path]
) -> None:
    engine = quantised(tmp_path, precision)
    build(engine, "--ahead-of-time", compute_capabilities, "--chunk", "32", "--max-context", "512")
    for sm in compute_capabilities.split(","):
        check_record(engine, int(sm.removeprefix("sm")))


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["w4a16", "w8a8"])
def test_an_8b_shaped_target_of_two_layers(tmp_path: Path, precision: str, rtx: list[Path]) -> None:
    """Llama 3.1 8B's widths; a small vocabulary, because its projection is the same matmul as the others."""
    wide = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336}
    target = tiny.make_target(tmp_path / "target", layers=2, rope_parameters={"rope_type": "default", "rope_theta": 5e5}, **wide)
    head = tiny.make_head(tmp_path / "head", **wide)
    engine = tiny.make_engine(tmp_path / "engine", target, head, precision=precision, verify=False)
    build(engine, "--ahead-of-time", "sm86,sm89,sm120", "--chunk", "64", "--max-context", "1024")
    for sm in (86, 89, 120):
        check_record(engine, sm)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "sm", "words"), [("fp8", 86, "float8.*sm89"), ("nvfp4", 89, "NVFP4.*sm100")])
def test_a_gpu_without_the_type_is_refused_before_a_build(tmp_path: Path, precision: str, sm: int, words: str) -> None:
    engine = quantised(tmp_path, precision)
    with pytest.raises(ExportError, match=words):
        building.plan(engine, Manifest.read(engine), "tensorrt-rtx", [sm], building.Settings())
