"""The whole contract on a user's GPU: `make test-gpu` runs this and writes a report. None of it has run on a GPU yet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import checks
import plugin_library
from jakiro_export.tensorrt.building import AHEAD_OF_TIME
from jakiro_runtime import Engine
from jakiro_runtime.backends import built_engines, gpu
from jakiro_runtime.backends.cuda_memory import CudaMemory, load_plugin, load_runtime
from jakiro_runtime.format.manifest import Manifest

pytestmark = pytest.mark.gpu
Note = Callable[[str, dict[str, Any]], None]


def jakiro_build(directory: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "jakiro_export.cli.build", str(directory), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=["cuda", "tensorrt", "tensorrt-rtx"])
def backend(request: pytest.FixtureRequest, directory: Path, device: gpu.Device) -> str:
    """A backend whose library is installed, its engines built for this GPU."""
    name = str(request.param)
    if name == "cuda":
        return name
    if not any(map(find_spec, built_engines.PACKAGES[name])):
        pytest.skip(f"{built_engines.PRODUCTS[name]} is not installed: {built_engines.INSTALL[name]}")
    if name == "tensorrt-rtx" and device.sm not in AHEAD_OF_TIME:
        pytest.skip(f"TensorRT-RTX builds nothing for sm{device.sm}")
    mine = built_engines.read(Manifest.read(directory)).get(device.sm)
    if mine is None or mine.runtime != name or mine.plugin:
        jakiro_build(directory, *(["--ahead-of-time", f"sm{device.sm}"] if name == "tensorrt-rtx" else []))
    return name


def test_the_engines_agree_with_onnx_runtime(directory: Path, backend: str, device: gpu.Device, note: Note) -> None:
    """Every output of both graphs, as jakiro-build compared them."""
    if backend == "cuda":
        pytest.skip("nothing is built for ONNX Runtime")
    entry = Manifest.read(directory).extra["tensorrt"][f"sm{device.sm}"]
    note("builds", entry["builds"])
    if backend == "tensorrt":
        assert entry["checks"], "jakiro-build compared nothing"
        assert all(check["passed"] for check in entry["checks"])
        note("largest differences", {f"{c['graph']} {c['profile']} {c['name']}": c["difference"] for c in entry["checks"][:8]})


def test_the_same_tokens(directory: Path, backend: str, reference: Engine, prompts: list[list[int]], note: Note) -> None:
    note("tokens", checks.tokens(directory, reference, backend, prompts))


def test_a_seed_draws_the_same_tokens(directory: Path, backend: str, prompts: list[list[int]], note: Note) -> None:
    note("seeds", checks.seeds(directory, backend, prompts[1]))


def test_rounds_are_cuda_graphs(directory: Path, backend: str, prompts: list[list[int]], note: Note) -> None:
    if backend == "cuda":
        pytest.skip("ONNX Runtime's own CUDA graphs are not used")
    note("recorded", checks.recorded(directory, backend, prompts[1]))


def test_speed(directory: Path, backend: str, prompts: list[list[int]], note: Note) -> None:
    note("speed", checks.speed(directory, backend, prompts[1]))


def test_rows_are_appended_by_the_kernel(
    directory: Path, backend: str, reference: Engine, prompts: list[list[int]], plugin: Path, note: Note
) -> None:
    note("tokens with the kernel", checks.tokens(directory, reference, backend, prompts, plugin=plugin))
    note("speed with the kernel", checks.speed(directory, backend, prompts[1], plugin=plugin))


@pytest.mark.parametrize("kind", ["float", "half", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "hidden", "inner", "experts", "top_k"), [(1, 64, 48, 2, 2), (13, 576, 576, 2, 2), (60, 200, 136, 4, 2)]
)
def test_expert_dispatch(plugin: Path, kind: str, rows: int, hidden: int, inner: int, experts: int, top_k: int) -> None:
    memory = CudaMemory(load_runtime())
    checks.dispatch(memory, load_plugin(plugin), plugin_library.Problem.random(kind, rows, hidden, inner, experts, top_k))


def test_expert_dispatch_speed(plugin: Path, note: Note) -> None:
    """Llama-2-7B's head with ten rows, as in plugins/README.md."""
    problem = plugin_library.Problem.random("half", 10, 4096, 4096, 2, 2)
    note("dispatch", checks.dispatch(CudaMemory(load_runtime()), load_plugin(plugin), problem, repeats=50))


def test_engines_with_the_plugin(
    directory: Path, reference: Engine, prompts: list[list[int]], plugin: Path, note: Note, device: gpu.Device
) -> None:
    """Last: it replaces the engines."""
    if not any(map(find_spec, built_engines.PACKAGES["tensorrt"])):
        pytest.skip(f"TensorRT is not installed: {built_engines.INSTALL['tensorrt']}")
    jakiro_build(directory, "--plugin", plugin)
    note("tokens with the plugin", checks.tokens(directory, reference, "tensorrt", prompts, plugin=plugin))
    note("speed with the plugin", checks.speed(directory, "tensorrt", prompts[1], plugin=plugin))
