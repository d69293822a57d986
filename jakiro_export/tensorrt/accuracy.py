"""A built engine against ONNX Runtime, both with the same inputs: what a build on a device ends with.

`feed` and `compare` know no GPU and are tested with ONNX Runtime on both sides; `check_engine` has not run on a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from jakiro_export.errors import ExportError
from jakiro_export.tensorrt.graphs import Graph, Tensor
from jakiro_export.tensorrt.profiles import Profile
from jakiro_runtime.backends.evaluate import GraphCall
from jakiro_runtime.backends.onnxruntime import open_graph
from jakiro_runtime.backends.tensorrt import EngineLoader
from jakiro_runtime.contract import GraphContract

Feed = dict[str, np.ndarray]
Run = Callable[[Feed], Mapping[str, np.ndarray]]

# As a share of the largest value of a tensor: rounding of the element type, grown by the depth of the graph.
TOLERANCE = {"fp32": 2e-3, "fp16": 3e-2, "bf16": 2e-1}
_EXACT = ("tree_parents",)  # compared only where the tokens agree: both follow from near ties


def feed(graph: Graph, profile: Profile, vocab: int, seed: int = 0) -> Feed:
    """Inputs of the lengths a profile is tuned for: random tokens after a random past that fills half of the cache."""
    random = np.random.default_rng(seed)
    axes = {axis: reach.opt for axis, reach in profile.axes.items()}
    rows, past = axes["rows"], axes["capacity"] // 2 - axes["rows"]
    batch = axes["batch"]

    def value(tensor: Tensor) -> np.ndarray:
        shape = tuple(axes[dim] if isinstance(dim, str) else dim for dim in tensor.dims)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.type)
        if tensor.name == "input_ids":
            return random.integers(0, vocab, shape)
        if tensor.name == "position_ids":
            return np.broadcast_to(past + np.arange(rows), shape).astype(np.int64)
        if tensor.name == "tree_mask":
            return np.broadcast_to(np.tri(rows, dtype=bool), shape).copy()
        if tensor.name == "past_length":
            return np.full(batch, past, np.int64)
        if tensor.name == "last_row":
            return np.full(batch, rows - 1, np.int64)
        if tensor.name == "logit_rows":
            return np.broadcast_to(rows - shape[-1] + np.arange(shape[-1]), shape).astype(np.int64)
        return random.standard_normal(shape).astype(dtype)

    return {tensor.name: np.ascontiguousarray(value(tensor)) for tensor in graph.inputs}


def compare(reference: Run, engine: Run, inputs: Feed, precision: str) -> list[dict[str, Any]]:
    """One entry for each output: name, difference, allowed, passed.

    The difference of real numbers is the largest one as a share of the reference's largest value; that of token numbers is the
    share of places where they differ, of which near ties may cause a few.
    """
    expected, found = reference(inputs), engine(inputs)
    checks = []
    for name, wanted in expected.items():
        if name in _EXACT:
            continue
        got = found[name]
        if wanted.shape != got.shape:
            raise ExportError(f"The engine's {name} has shape {got.shape}; {wanted.shape} was expected.")
        if np.issubdtype(wanted.dtype, np.integer):
            difference, allowed = float((wanted != got).mean()), 0.25 if precision != "fp32" else 0.1
        else:
            exact = wanted.astype(np.float64)
            difference = float(np.abs(exact - got.astype(np.float64)).max() / max(np.abs(exact).max(), 1e-6))
            allowed = TOLERANCE[precision]
        passed = bool(difference <= allowed)  # False for NaN too
        checks.append({"name": name, "difference": difference, "allowed": allowed, "passed": passed})
    return checks


def onnxruntime_runner(path: Path, contract: GraphContract) -> Run:
    """ONNX Runtime on the CPU. Raises EngineError where it is not installed."""
    call = GraphCall(open_graph(path), contract)
    return lambda inputs: call(**inputs)


def check_engine(
    loader: EngineLoader, file: Path, graph: Graph, contract: GraphContract, profiles: list[Profile], vocab: int, precision: str
) -> list[dict[str, Any]]:
    """Run an engine on this machine's GPU by the runtime's own backend, each profile at the lengths it is tuned for.

    The engine is gone before ONNX Runtime opens the graph: on a Jetson both would be in the same memory.

    Raises:
        EngineError: TensorRT does not load or run the engine, or onnxruntime is not installed
    """
    inputs = [feed(graph, profile, vocab) for profile in profiles]
    engine = GraphCall(loader.load(file), contract)
    results = [engine(**values) for values in inputs]
    del engine
    gc.collect()
    reference, checks = onnxruntime_runner(graph.path, contract), []
    for profile, values, result in zip(profiles, inputs, results, strict=True):
        found = compare(reference, lambda _, result=result: result, values, precision)  # type: ignore[misc]
        checks += [{**check, "graph": graph.path.stem, "profile": profile.name} for check in found]
    return checks
