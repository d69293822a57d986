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
import jakiro_runtime.backends.tensorrt
import plugin_wheels

BUILDER = [Path(jakiro_export.tensorrt.worker.__file__)]
BACKEND = [Path(jakiro_runtime.backends.tensorrt.__file__)]
SOURCES = BUILDER + BACKEND
BINDINGS = {
    "10.3.0": ("tensorrt-cu12-bindings==10.3.0", "10"),
    "10.13.3.9": ("tensorrt-cu13-bindings==10.13.3.9", "10"),
    "11.4.0.106": ("tensorrt-cu13-bindings==11.4.0.106", "11"),
}
# What our sources call an object, and its class.
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "cache": "ITimingCache", "registry": "IPluginRegistry", "loader": "Runtime",
    "engine": "ICudaEngine", "context": "IExecutionContext", "refitter": "Refitter", "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache", "parser_refitter": "OnnxParserRefitter",
}  # fmt: skip
# Calls that TensorRT-RTX alone has: builds ahead of time, and how its kernels are compiled.
RTX_ONLY = {
    "ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability",
    "BuilderFlag.REQUIRE_USER_ALLOCATION", "DynamicShapesKernelSpecializationStrategy.EAGER", "CudaGraphStrategy.DISABLED",
    "DynamicShapesKernelSpecializationStrategy", "CudaGraphStrategy", "ICudaEngine.create_runtime_config",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy", "IRuntimeConfig.cuda_graph_strategy",
    "IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache",
    "IRuntimeConfig.set_execution_context_allocation_strategy", "IRuntimeCache.serialize", "IRuntimeCache.deserialize",
}  # fmt: skip
# Calls of newer versions, made where they exist
WHERE_THERE = {"IStreamWriter", "Builder.build_serialized_network_to_stream"}
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
    unknown = {
        name for name in used - known - WHERE_THERE if not any(name == only or name.startswith(f"{only}.") for only in RTX_ONLY)
    }
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
