"""Which backend runs an engine, and one sentence for each that cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

import fake_tensorrt
from fake_building import plan_instead_of_building
from fake_cuda import FakeCuda
from jakiro_export.cli.build import after_export
from jakiro_export.cli.build import main as build_main
from jakiro_export.tensorrt import accuracy, building
from jakiro_runtime import Engine, EngineError, UsageError
from jakiro_runtime.backends import built_engines, cuda_memory, gpu, select_backend
from jakiro_runtime.cli import main
from jakiro_runtime.format.manifest import Manifest
from paths import ROOT


def said(*arguments: object) -> str:
    """The one sentence of a failed jakiro-run."""
    result = CliRunner().invoke(main, ["--prompt", "Hello", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    lines = result.output.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_auto_is_the_cpu_without_engines(tiny_numerical: Path, cuda: FakeCuda) -> None:
    assert select_backend(Manifest.read(tiny_numerical)) == "onnxruntime"


def test_auto_takes_what_was_built_for_this_gpu(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_engines, "find_spec", lambda name: name)
    manifest = Manifest.read(directory)
    assert select_backend(manifest) == "tensorrt"
    monkeypatch.setattr(built_engines, "find_spec", lambda name: None)
    assert select_backend(manifest) == "onnxruntime", "built, and its library is not installed"
    monkeypatch.undo()
    assert select_backend(manifest) == "onnxruntime", "built, and no GPU here"


def test_an_unknown_backend(tiny_numerical: Path) -> None:
    with pytest.raises(UsageError, match="no backend 'cpu'.*onnxruntime"):
        Engine.open(tiny_numerical, "cpu")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_nothing_built(tiny_numerical: Path, backend: str) -> None:
    sentence = said("--engine", tiny_numerical, "--backend", backend)
    assert "no engines for TensorRT" in sentence
    assert "jakiro-build" in sentence


def test_no_gpu(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    assert "no NVIDIA driver" in said("--engine", directory, "--backend", "tensorrt")


def test_another_gpu(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find", lambda: gpu.Device("Other", 90, 1, 1, False))
    sentence = said("--engine", directory, "--backend", "tensorrt")
    assert "Other, sm90" in sentence
    assert "for sm87" in sentence


def test_no_library(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_engines, "PACKAGES", {"tensorrt": ("no_such_module",)})
    assert "TensorRT is not installed" in said("--engine", directory, "--backend", "tensorrt")


def test_a_plugin_is_registered_once(directory: Path, plugin: Path) -> None:
    manifest = Manifest.read(directory)
    manifest.extra["tensorrt"]["sm87"]["dispatch"] = "plugin"
    manifest.write(directory)
    for _ in range(2):
        Engine.open(directory, "tensorrt", plugin=plugin)
    assert fake_tensorrt.registry.known == [str(plugin)]


def test_no_plugin_where_one_was_used(directory: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(directory)
    manifest.extra["tensorrt"]["sm87"]["dispatch"] = "plugin"
    manifest.write(directory)
    assert "--plugin" in said("--engine", directory, "--backend", "tensorrt")
    missing = tmp_path / "none.so"
    assert str(missing) in said("--engine", directory, "--backend", "tensorrt", "--plugin", missing)
    missing.write_bytes(b"no library")
    assert "does not load" in said("--engine", directory, "--backend", "tensorrt", "--plugin", missing)


@pytest.mark.parametrize("lost", ["runtime", "graphs", "file"])
def test_a_record_that_makes_no_sense(directory: Path, lost: str) -> None:
    manifest = Manifest.read(directory)
    if lost == "file":
        del manifest.files["tensorrt/sm87/draft.engine"]
    else:
        del manifest.extra["tensorrt"]["sm87"][lost]
    manifest.write(directory)
    assert "run jakiro-build again" in said("--engine", directory, "--backend", "tensorrt")


@pytest.fixture
def refitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, str]]:
    """(model, path of the weights) of every engine that was given its weights."""
    given: list[tuple[bytes, str]] = []

    class Refitter:
        def __init__(self, engine: object, logger: object) -> None: ...

        def refit_cuda_engine(self) -> bool:
            return True

    class OnnxParserRefitter(Refitter):
        def refit_from_bytes(self, model: bytes, path: str) -> bool:
            given.append((model, path))
            return len(given) < 3

    monkeypatch.setattr(fake_tensorrt, "Refitter", Refitter, raising=False)
    monkeypatch.setattr(fake_tensorrt, "OnnxParserRefitter", OnnxParserRefitter, raising=False)
    return given


def test_engines_without_weights_take_them_by_the_names_of_what_was_parsed(
    tiny_numerical: Path, tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, refitted: list[tuple[bytes, str]]
) -> None:
    """A parser saw functions' bodies and lowered norms; the exported file has other names for their constants."""
    engine, parsed = Path(shutil.copytree(tiny_numerical, tmp_path / "engine")), []

    def build(request: building.BuildRequest) -> dict[str, object]:
        parsed.append(Path(request.model).read_bytes())
        Path(request.output).write_text(json.dumps({"onnx": request.source, "profiles": request.profiles}))
        return {"engine_bytes": 1, "peak_bytes": 0, "seconds": 0.0, "layers": 1}

    monkeypatch.setattr(building, "run_request", build)
    fake_tensorrt.__version__ = "10.3.0"
    try:
        result = CliRunner().invoke(build_main, [str(engine), "--strip-weights", "--chunk", "32"])
    finally:
        fake_tensorrt.__version__ = "10.99.0"
    assert result.exit_code == 0, result.output
    Engine.open(engine, "tensorrt")
    assert [model for model, _ in refitted] == parsed
    assert [Path(path) for _, path in refitted] == [engine / "target.onnx", engine / "draft.onnx"]
    names = {weight.name for weight in onnx.ModelProto.FromString(parsed[0]).graph.initializer}
    assert any(name.startswith("lowered.") for name in names), "constants that the exported file does not have"
    with pytest.raises(EngineError, match="without --strip-weights"):
        Engine.open(engine, "tensorrt")


def test_engines_hold_the_weights_so_that_the_graphs_may_stay_behind(directory: Path) -> None:
    manifest = Manifest.read(directory)
    held = [directory / name for name in manifest.files if ".onnx" in name]
    for file in held:
        if file.suffix == ".data":  # the fake engine is computed from the graph itself
            file.write_bytes(file.read_bytes() + b"!")
    Engine.open(directory, "tensorrt")
    with pytest.raises(EngineError, match="it was changed or cut"):
        Engine.open(directory, "onnxruntime")
    with pytest.raises(EngineError, match="it was changed or cut"):
        Engine.open(directory, "tensorrt", check_files=True)


def test_the_commit_structure_is_the_header_s() -> None:
    header = (ROOT / "plugins" / "include" / "jakiro_plugins.h").read_text()
    body = header[header.index("int32_t tensors") : header.index("} JakiroKvCommit")]
    names = [part.split("*")[-1].strip() for line in body.splitlines() for part in line.split(";")[0].split(",")]
    names = [name.split()[-1] for name in names if name]
    assert [name for name, *_ in cuda_memory.KvCommit._fields_] == names


def test_an_export_builds_engines_where_there_is_a_gpu(
    tiny_numerical: Path, tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The tail of jakiro-export; on machines without GPU or TensorRT it ends before."""
    monkeypatch.setattr(building, "run", plan_instead_of_building)
    monkeypatch.setattr(accuracy, "check_engine", lambda *_: [])
    engine = Path(shutil.copytree(tiny_numerical, tmp_path / "engine"))
    after_export(engine)
    assert list(Manifest.read(engine).extra["tensorrt"]) == ["sm87"]
    other = Path(shutil.copytree(tiny_numerical, tmp_path / "other"))
    monkeypatch.setattr(built_engines, "PACKAGES", {"tensorrt": ("no_such_module",)})
    capsys.readouterr()
    after_export(other)
    assert "No TensorRT engines were built: TensorRT is not installed" in capsys.readouterr().err
    monkeypatch.setattr(gpu, "find", lambda: (_ for _ in ()).throw(EngineError("no GPU")))
    after_export(other)
    assert capsys.readouterr().err == ""
    assert "tensorrt" not in Manifest.read(other).extra
