"""What one version of TensorRT makes of the plugin; prints it as JSON. Run by test_plugin_registry.py, in a process of its own.

    python registry_driver.py FOLDER_OF_BINDINGS FOLDER_OF_LIBRARIES libjakiro_plugins.so registry_probe.so

TensorRT's own registry loads the library and creates the plugin. `registry_probe.cpp` then calls that object as the builder and
the execution context of TensorRT do: there is no GPU that would let a real engine reach it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = sys.argv[1:3]

import tensorrt_lean_bindings as tensorrt  # noqa: E402

from plugin_library import Library, Problem, aligned  # noqa: E402

NAME, VERSION, NAMESPACE = "ExpertDispatch", "1", "jakiro"
TENSORRT_TYPES = {"float": tensorrt.float32, "half": tensorrt.float16, "bfloat16": tensorrt.bfloat16}


def address(plugin: Any) -> int:
    """The C++ object behind a pybind11 one: the first word after Python's own header."""
    return int(ctypes.c_void_p.from_address(id(plugin) + object.__basicsize__).value or 0)


def create(creator: Any, phase: Any, **fields: int) -> Any:
    values = [
        tensorrt.PluginField(name, np.array([value], np.int32), tensorrt.PluginFieldType.INT32) for name, value in fields.items()
    ]
    return creator.create_plugin("node", tensorrt.PluginFieldCollection(values), phase)


def sizes(problem: Problem) -> ctypes.Array:
    rows, hidden = problem.x.shape
    return (ctypes.c_int64 * 4)(rows, hidden, problem.down.shape[2], problem.down.shape[0])


class Probe:
    def __init__(self, path: str, library: Library) -> None:
        self.c, self.library = ctypes.CDLL(path), library
        self.c.probe_build.restype = ctypes.c_int64

    def workspace(self, plugin: Any, problem: Problem) -> int:
        """Bytes, or -1 where the plugin refuses the shapes or the type."""
        kind = int(TENSORRT_TYPES[problem.type])
        return int(self.c.probe_build(ctypes.c_void_p(address(plugin)), kind, sizes(problem)))

    def refuses_type(self, plugin: Any, problem: Problem, kind: Any) -> bool:
        return self.c.probe_build(ctypes.c_void_p(address(plugin)), int(kind), sizes(problem)) == -1

    def fields(self, plugin: Any) -> dict[str, int]:
        text = ctypes.create_string_buffer(1000)
        self.c.probe_fields(ctypes.c_void_p(address(plugin)), text, len(text))
        return {name: int(value) for name, value in (item.split("=") for item in text.value.decode().split(";") if item)}

    def enqueue(self, plugin: Any, problem: Problem, workspace: int) -> list[np.ndarray]:
        """The outputs of one call. Raises Fault where the kernel reads or writes outside its buffers."""
        self.library.clear(seed=1)
        arrays = {name: aligned(getattr(problem, name)) for name in ("x", "router_logits", "gate_up", "down")}
        outputs = {name: aligned(np.full(problem.x.shape, np.nan, problem.x.dtype)) for name in ("primary", "contrast")}
        scratch = {"workspace": aligned(np.full(workspace, 0xFF, np.uint8))}
        pointers = [self.library.know(name, array) for name, array in arrays.items()]
        pointers += [self.library.know(name, array, True) for name, array in {**outputs, **scratch}.items()]
        code = self.c.probe_enqueue(
            ctypes.c_void_p(address(plugin)),
            int(TENSORRT_TYPES[problem.type]),
            sizes(problem),
            (ctypes.c_void_p * len(pointers))(*pointers),
        )
        self.library.check(code)
        return list(outputs.values())


def worst(results: list[np.ndarray], problem: Problem) -> float:
    """The largest error as a share of what is allowed; passed if at most 1."""
    expected, tolerances = problem.expected()
    return max(float((np.abs(r.astype(np.float64) - e) / t).max()) for r, e, t in zip(results, expected, tolerances, strict=True))


def group_matmul(registry: Any, probe: Probe) -> dict[str, Any]:
    """GroupMatMul made by its creator and run, once as it should be and then as it must be refused."""
    creator = registry.get_creator("GroupMatMul", VERSION, NAMESPACE)
    if creator is None:
        return {"known": False}
    plugin, random = create(creator, tensorrt.TensorRTPhase.BUILD), np.random.default_rng(0)
    rows, size_in, size_out, group = 11, 128, 72, 32
    x = aligned(random.standard_normal((rows, size_in)).astype(np.float16))
    codes = random.integers(0, 16, (size_in, size_out)).astype(np.uint8)
    scales = aligned(random.uniform(0.02, 0.1, (size_in // group, size_out)).astype(np.float16))
    weights, y = aligned(codes[:, ::2] | codes[:, 1::2] << 4), aligned(np.full((rows, size_out), np.nan, np.float16))
    named = {"x": x, "weights": weights, "scales": scales, "y": y}

    def run(sizes: tuple[int, ...], kind: Any = tensorrt.float16, weight: Any = tensorrt.int8) -> int:
        probe.library.clear(seed=1)
        pointers = [probe.library.know(name, array, name == "y") for name, array in named.items()]
        arguments = (ctypes.c_int64 * 4)(*sizes), (ctypes.c_void_p * 4)(*pointers)
        return int(probe.c.probe_group_matmul(ctypes.c_void_p(address(plugin)), int(kind), int(weight), *arguments))

    sizes = (rows, size_in, size_out, group)
    code = run(sizes)
    probe.library.check(code)
    steps = np.where(codes > 7, codes.astype(np.int8) - 16, codes).astype(np.float32)
    matrix = (steps * np.repeat(scales, group, 0).astype(np.float32)).astype(np.float16).astype(np.float64)
    exact = x.astype(np.float64) @ matrix
    error = float(np.abs(y.astype(np.float64) - exact).max())
    refused = {
        "float": run(sizes, tensorrt.float32),
        "uint8 weights": run(sizes, weight=tensorrt.uint8),
        "groups of 16": run((rows, size_in, size_out, 16)),
        "odd outputs": run((rows, size_in, 60, group)),
    }
    return {"known": True, "code": code, "error": error, "refused": refused}


def main() -> None:
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)  # made before the registry is used, kept until the end
    registry = tensorrt.get_plugin_registry()
    report: dict[str, Any] = {"tensorrt": tensorrt.__version__}
    report["known_before"] = registry.get_creator(NAME, VERSION, NAMESPACE) is not None
    handle = registry.load_library(sys.argv[3])
    creator = registry.get_creator(NAME, VERSION, NAMESPACE)
    report["known"] = creator is not None
    report["known_without_namespace"] = registry.get_creator(NAME, VERSION, "") is not None
    probe = Probe(sys.argv[4], Library(Path(sys.argv[3])))
    build, runtime = tensorrt.TensorRTPhase.BUILD, tensorrt.TensorRTPhase.RUNTIME
    report["senseless"] = {f"top_k={k}": create(creator, build, top_k=k) is not None for k in (0, -1)}
    report["lost_attribute"] = create(creator, build, contrast=1) is not None
    report["errors"], report["other_top_k"] = {}, {}
    for type in TENSORRT_TYPES:
        for experts, top_k in ((2, 2), (4, 2)):
            problem = Problem.random(type, 11, 64, 48, experts, top_k)
            plugin = create(creator, build, top_k=top_k, contrast=1)
            workspace = probe.workspace(plugin, problem)
            stored = probe.fields(plugin)
            again = create(creator, runtime, **stored)
            report["errors"][f"{type}, {experts} experts"] = worst(probe.enqueue(again, problem, workspace), problem)
            if top_k < experts:
                wrong = create(creator, runtime, **{**stored, "top_k": 1})
                report["other_top_k"][type] = worst(probe.enqueue(wrong, problem, workspace), problem)
    report["fields"], report["workspace"] = stored, workspace
    plugin = create(creator, build, top_k=3, contrast=0)
    report["fields_of_another"] = probe.fields(plugin)
    few = Problem.random("half", 4, 64, 48, 2, 2)
    report["top_k_beyond_the_experts"] = probe.workspace(plugin, few)
    report["refuses_int8"] = probe.refuses_type(create(creator, build, top_k=2, contrast=1), few, tensorrt.int8)
    report["handle"] = handle is not None
    report["group_matmul"] = group_matmul(registry, probe)
    print(json.dumps(report))
    del logger


if __name__ == "__main__":
    main()
