"""What the GPU's tests need. Where there is none, they are skipped and say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from jakiro_runtime import Engine, EngineError
from jakiro_runtime.backends import gpu
from paths import ROOT

WORK = ROOT / "out" / "gpu"


@pytest.fixture(scope="session")
def device() -> gpu.Device:
    try:
        return gpu.find()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[str, dict[str, Any]], None]:
    """Puts figures into the report."""
    return lambda name, figures: record_property(name, figures)


@pytest.fixture(scope="session", params=["tiny", "smollm2"])
def directory(request: pytest.FixtureRequest, device: gpu.Device) -> Path:
    """An engine directory in half precision, exported once; `make test-gpu` begins with an empty folder."""
    out = WORK / request.param
    if (out / "engine.json").exists():
        return out
    WORK.mkdir(parents=True, exist_ok=True)
    opset = 23 if device.sm != 87 else 20  # JetPack 6's parser stops before 23
    if request.param == "tiny":
        target, head = tiny.make_target(WORK / "tiny-target"), tiny.make_head(WORK / "tiny-head")
        return tiny.make_engine(out, target, head, precision="fp16", opset=opset)
    command = [sys.executable, "-m", "jakiro_export.cli.export", "-t", "smollm2-135m", "-d", "smollm2-135m", "-o", str(out)]
    options = ["--precision", "fp16", "--opset", str(opset), "--nodes", "31", "--max-context", "2048", "--no-build"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def reference(directory: Path) -> Engine:
    """ONNX Runtime on the CPU."""
    return Engine.open(directory, "onnxruntime")


@pytest.fixture(scope="session")
def prompts(reference: Engine) -> list[list[int]]:
    """Of several lengths, one longer than a chunk and one that crosses the first capacity."""
    texts = ["Hello", "Explain to a child why bread rises.", "Count to ten. " * 12, "The quick brown fox jumps. " * 8]
    ids = [reference.encode(text)[:240] for text in texts]
    return [*ids[:3], (ids[3] * 40)[:240]]


@pytest.fixture(scope="session")
def plugin(device: gpu.Device) -> Path:
    """libjakiro_plugins.so for this GPU: the one JAKIRO_PLUGIN names, or built here."""
    named = os.environ.get("JAKIRO_PLUGIN")
    if named:
        return Path(named)
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not (shutil.which("cmake") and Path(nvcc).exists()):
        pytest.skip("building the plugin needs cmake and nvcc; or name one that is built in JAKIRO_PLUGIN")
    folder = WORK / "plugins"
    for command in (
        ["cmake", "-S", str(ROOT / "plugins"), "-B", str(folder), f"-DCMAKE_CUDA_COMPILER={nvcc}",
         f"-DCMAKE_CUDA_ARCHITECTURES={device.sm}"],
        ["cmake", "--build", str(folder), "-j"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "libjakiro_plugins.so"
