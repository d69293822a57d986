"""jakiro-build's words: what it would do, and one sentence for everything that cannot be done."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jakiro_export.cli.build import main
from jakiro_export.tensorrt import memory
from jakiro_runtime.backends import built_engines
from jakiro_runtime.backends import gpu as device


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error(result: Result, code: int) -> str:
    """The one sentence of a failed call."""
    assert result.exit_code == code, result.output
    lines = result.output.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith(".")
    return lines[0]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_dry_run_says_what_would_be_built_and_writes_nothing(half_engine: Path) -> None:
    before = files(half_engine)
    result = call(half_engine, "--ahead-of-time", "sm86,sm120", "--dry-run", "--chunk", "64", "--max-context", "500")
    assert result.exit_code == 0, result.output
    for sm in (86, 120):
        for name in ("target", "draft"):
            assert f"tensorrt/sm{sm}/{name}.engine" in result.output
    assert "rows 1..64 (best at 64)" in result.output
    assert "rows 1..13 (best at 13)" in result.output, "12 nodes and the root"
    assert "capacity 256..640" in result.output, "500 positions and a chunk of 64, in steps of 128"
    assert "needs about" in result.output
    assert files(half_engine) == before


def test_a_dry_run_for_a_device_needs_none(half_engine: Path) -> None:
    result = call(half_engine, "--dry-run", "--sm", "sm87")
    assert result.exit_code == 0, result.output
    assert "of the GPU's" in result.output


def test_without_a_gpu(half_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = device.find
    monkeypatch.setattr(device, "find", lambda **words: find("libcuda-of-no-machine.so", **words))
    assert "--ahead-of-time" in error(call(half_engine), 1)


def a_gpu(monkeypatch: pytest.MonkeyPatch, sm: int = 87, free: int = 8 << 30, shared: bool = True) -> None:
    monkeypatch.setattr(device, "find", lambda **_: device.Device("A GPU of this test", sm, free, 16 << 30, shared))


def test_without_tensorrt(half_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch)
    monkeypatch.setattr(built_engines, "PACKAGES", {"tensorrt": ("no_such_module",), "tensorrt-rtx": ("no_such_module",)})
    assert "TensorRT is not installed" in error(call(half_engine), 1)
    assert "TensorRT-RTX is not installed" in error(call(half_engine, "--ahead-of-time", "sm86"), 1)


def test_the_wrong_gpu(half_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch, sm=110)
    said = error(call(half_engine, "--sm", "sm87"), 1)
    assert "sm110" in said
    assert "sm87" in said


@pytest.mark.parametrize(
    ("list", "word"),
    [("sm87", "Jetson Orin"), ("sm110", "Jetson Thor"), ("sm70", "known are sm75"), ("86x", "'86x'"), (",", "no GPU")],
)
def test_gpus_that_cannot_be_built_for_ahead_of_time(half_engine: Path, list: str, word: str) -> None:
    assert word in error(call(half_engine, "--ahead-of-time", list), 2)


def test_a_bitwise_engine_is_for_cpus(tiny_engine: Path) -> None:
    said = error(call(tiny_engine, "--ahead-of-time", "sm86"), 1)
    assert "float64" in said
    assert "--precision fp16" in said


def test_too_little_memory(half_engine: Path, monkeypatch: pytest.MonkeyPatch, rtx: list[Path]) -> None:
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    said = error(call(half_engine, "--ahead-of-time", "sm86"), 1)
    assert "0.6 GiB" in said
    assert "0.1 GiB" in said


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--ahead-of-time", "sm86", "--sm", "sm86"], "--sm"),
        (["--ahead-of-time", "sm86", "--strip-weights"], "--strip-weights needs a GPU"),
        (["--plugin", "/no/such/library.so"], "/no/such/library.so"),
        (["--max-context", "99999", "--dry-run", "--sm", "sm87"], "99999"),
        (["--dry-run", "--sm", "orin"], "orin"),
    ],
)
def test_wrong_calls(half_engine: Path, arguments: list[str], word: str) -> None:
    assert word in error(call(half_engine, *arguments), 2)


def test_a_folder_that_is_no_engine(tmp_path: Path) -> None:
    assert "engine.json" in error(call(tmp_path, "--ahead-of-time", "sm86"), 2)


def test_a_damaged_engine_is_not_built_from(engine: Path) -> None:
    with (engine / "target.onnx.data").open("ab") as file:
        file.write(b"more")
    assert "target.onnx.data" in error(call(engine, "--ahead-of-time", "sm86"), 1)
