"""Every call that this project makes into TensorRT exists in the versions it names.

The bindings' wheels are imported over empty libraries: their attribute names, enumerations and docstrings mean something there,
nothing else does.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import jakiro_export.tensorrt.worker
import jakiro_runtime.backends.cuda_memory
import jakiro_runtime.backends.tensorrt
import plugin_wheels

BUILDER = [Path(jakiro_export.tensorrt.worker.__file__)]
BACKEND = [Path(jakiro_runtime.backends.tensorrt.__file__)]
SOURCES = BUILDER + BACKEND
CUDA_SOURCES = [Path(jakiro_runtime.backends.cuda_memory.__file__)]
# JetPack 6 is CUDA 12, JetPack 7 is CUDA 13.
CUDA_BINDINGS = {
    "12": ("cuda-bindings==12.9.0", "cuda-pathfinder==1.3.0"),
    "13": ("cuda-bindings==13.0.3", "cuda-pathfinder==1.3.0"),
}
BINDINGS = {
    "10.3.0": ("tensorrt-cu12-bindings==10.3.0", "10"),
    "10.13.3.9": ("tensorrt-cu13-bindings==10.13.3.9", "10"),
    "11.4.0.106": ("tensorrt-cu13-bindings==11.4.0.106", "11"),
}
# What our sources call an object, and its class.
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "cache": "ITimingCache", "registry": "IPluginRegistry", "loader": "Runtime",
    "engine": "ICudaEngine", "context": "IExecutionContext", "refitter": "Refitter", "parser_refitter": "OnnxParserRefitter",
}  # fmt: skip
# Calls for builds ahead of time, which TensorRT-RTX alone has.
RTX_ONLY = {"ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}
_DESCRIBE = """
import importlib, json, sys
sys.path[:0] = sys.argv[2:]
module = importlib.import_module(sys.argv[1])
names = set(dir(module))
for name in list(names):
    inner = getattr(module, name)
    if isinstance(inner, type):
        names |= {f"{name}.{attribute}" for attribute in dir(inner)}
        names |= {f"{name}.{a}.{b}" for a in dir(inner) if isinstance(getattr(inner, a), type) for b in dir(getattr(inner, a))}
print(json.dumps(sorted(names)))
"""


def calls(path: Path) -> set[str]:
    """The names a source uses: "Builder", "BuilderFlag.TF32", "IBuilderConfig.set_flag", ..."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if not parts or not isinstance(node, ast.Name):
            continue
        while parts[1:] and (node.id == "self" or parts[0] == "trt"):  # self.engine.x, graph.trt.X
            node = ast.Name(parts.pop(0).lstrip("_"))
        if node.id == "trt":
            used |= {".".join(parts[: end + 1]) for end in range(len(parts))}
        elif node.id in CLASSES:
            used.add(f"{CLASSES[node.id]}.{parts[0]}")
    return {name for name in used if not name.endswith("__init__")}


def described(module: str, folders: list[Path], libraries: Path | None) -> set[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries or "")}
    command = [sys.executable, "-c", _DESCRIBE, module, *map(str, folders)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return set(json.loads(result.stdout))


@lru_cache
def surface(version: str, folder: Path) -> set[str]:
    """Every name in the bindings of a version. `folder` takes the empty libraries they are loaded over."""
    requirement, major = BINDINGS[version]
    bindings = plugin_wheels.unpacked(requirement)
    compiler = shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    needed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(bindings / "tensorrt_bindings" / "tensorrt.so")], capture_output=True, text=True
    ).stdout.split()
    symbols = [
        name for name in needed if name.endswith("_INTERNAL") or name.startswith(("getNv", "getPlugin", "getBuilder", "initLib"))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.c").write_text("\n".join(f"void* {name}(void) {{ return 0; }}" for name in symbols))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = f"lib{name}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", str(folder / "empty.c"), "-o", str(folder / library)]
        subprocess.run(command, check=True)
    return described("tensorrt_bindings", [bindings], folder)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def test_the_lint_sees_the_calls() -> None:
    used = set().union(*map(calls, SOURCES))
    assert {"Builder", "OnnxParser.parse", "BuilderFlag.STRIP_PLAN", "IOptimizationProfile.set_shape"} <= used
    assert used >= RTX_ONLY
    assert len(used) > 25
    assert {"ICudaEngine.get_tensor_dtype", "IExecutionContext.execute_async_v3", "Refitter.refit_cuda_engine"} <= used
    assert "ExecutionContextAllocationStrategy.USER_MANAGED" in used


@pytest.mark.parametrize("version", list(BINDINGS))
def test_every_call_exists_in(version: str, libraries: Path) -> None:
    known = surface(version, libraries / version)
    used = set().union(*map(calls, SOURCES))
    unknown = {name for name in used - known if not any(name == only or name.startswith(f"{only}.") for only in RTX_ONLY)}
    assert unknown == set()
    assert {f"DataType.{name}" for name in jakiro_runtime.backends.tensorrt._TYPES} <= known


def test_every_call_exists_in_tensorrt_rtx(rtx: list[Path]) -> None:
    module = "tensorrt_rtx_bindings" if rtx else "tensorrt_rtx"
    used = set().union(*map(calls, SOURCES))
    assert used - described(module, rtx, None) == set()


def test_calls_that_some_version_lacks_would_be_found(libraries: Path) -> None:
    assert "BuilderFlag.FP16" in surface("10.3.0", libraries / "10.3.0")
    assert "BuilderFlag.FP16" not in surface("11.4.0.106", libraries / "11.4.0.106")
    assert "OnnxParser.load_model_proto" not in surface("10.3.0", libraries / "10.3.0")
    assert "OnnxParser.load_model_proto" in surface("11.4.0.106", libraries / "11.4.0.106")
    assert not any("ComputeCapability" in name for name in surface("11.4.0.106", libraries / "11.4.0.106"))


def test_polygraphy_has_what_the_check_on_a_device_uses() -> None:
    """Its runners import TensorRT when they run, not before."""
    folder = plugin_wheels.unpacked("polygraphy==0.53.6")
    program = (
        "import sys, inspect; sys.path.insert(0, sys.argv[1])\n"
        "from polygraphy.backend.common import BytesFromPath\n"
        "from polygraphy.backend.trt import EngineFromBytes, TrtRunner\n"
        "assert 'optimization_profile' in inspect.signature(TrtRunner.__init__).parameters\n"
        "EngineFromBytes(BytesFromPath('x'))\n"
    )
    result = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# The CUDA runtime: names, and how many arguments each call takes.

_SIGNATURES = """
import json, sys
sys.path[:0] = sys.argv[1:]
from cuda.bindings import runtime
print(json.dumps({name: (getattr(runtime, name).__doc__ or "").split(chr(10))[0] for name in dir(runtime)}))
kinds = ("cudaMemcpyKind", "cudaStreamCaptureMode")
print(json.dumps([f"{kind}.{name}" for kind in kinds for name in dir(getattr(runtime, kind))]))
print(json.dumps(dir(runtime.cudaMemcpy3DParms())))
"""


def cuda_calls(path: Path) -> dict[str, int | None]:
    """What a source uses of the CUDA runtime: a call with its number of arguments, or a name with None."""
    used: dict[str, int | None] = {}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith(("cuda", "make_cuda")):
            inner = node.value.attr if isinstance(node.value, ast.Attribute) else ""
            used.setdefault(f"{inner}.{node.attr}" if inner.startswith("cuda") else node.attr, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in used:
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                continue
            used[node.func.attr] = len(node.args)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "finalize":  # (object, call, arguments ...)
            if isinstance(node.args[1], ast.Attribute):
                used[node.args[1].attr] = len(node.args) - 2
            else:  # _give_back, and what it frees with
                used[node.args[2].attr] = 1  # type: ignore[attr-defined]
    return used


@pytest.mark.parametrize("major", list(CUDA_BINDINGS))
def test_every_cuda_call_exists_and_takes_as_many_arguments(major: str) -> None:
    folders = [str(plugin_wheels.unpacked(requirement)) for requirement in CUDA_BINDINGS[major]]
    done = subprocess.run([sys.executable, "-c", _SIGNATURES, *folders], capture_output=True, text=True, check=True)
    signatures, members, box = map(json.loads, done.stdout.splitlines())
    used = dict(item for source in CUDA_SOURCES for item in cuda_calls(source).items())
    assert {"cudaMalloc", "cudaMemcpy3DAsync", "cudaStreamBeginCapture", "cudaMemcpyKind.cudaMemcpyDefault"} <= set(used)
    assert {"srcPtr", "dstPtr", "extent", "kind"} <= set(box)
    for name, count in used.items():
        assert name in signatures or name in members, name
        if count is not None and name != "cudaMemcpy3DParms":
            stated = signatures[name].partition("(")[2].rpartition(")")[0]
            assert count == (len(stated.split(",")) if stated.strip() else 0), f"{name} is {signatures[name]}"
