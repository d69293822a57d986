"""ONNX Runtime on the CPU, through I/O binding: buffers are shared, nothing is copied."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jakiro_runtime.backend import Buffers
from jakiro_runtime.errors import EngineError
from jakiro_runtime.kernels import library, needed

_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


def open_graph(path: Path, threads: int | None = None) -> OnnxRuntimeGraph:
    """Open an ONNX file; `threads` None takes one thread per physical core this process may use.

    Raises:
        EngineError: onnxruntime is not installed, or it refuses the file
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EngineError(
            "This engine needs onnxruntime, which is not installed; install it with: pip install onnxruntime"
        ) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # draft and target take turns on the same cores: an idle pool that spins takes them from the other
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        kernels = library() if needed(path) else None
        if kernels is not None:
            options.register_custom_ops_library(str(kernels))
        return OnnxRuntimeGraph(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
    except Exception as error:  # onnxruntime raises types of its own for each status code
        reason = str(error).splitlines()[0]
        raise EngineError(f"ONNX Runtime {ort.__version__} refuses {path}: {reason}") from error


class OnnxRuntimeGraph:
    """An opened session. Safe to run from several threads, each with its own binding."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = _dtypes(session.get_inputs())
        self.outputs = _dtypes(session.get_outputs())

    def bind(self, inputs: Buffers, outputs: Buffers) -> OnnxRuntimeBinding:
        return OnnxRuntimeBinding(self._session, inputs, outputs)


class OnnxRuntimeBinding:
    def __init__(self, session: Any, inputs: Buffers, outputs: Buffers) -> None:
        self._session, self._io = session, session.io_binding()
        self._alive: dict[str, np.ndarray] = {**outputs}  # the binding holds addresses only
        self.rebind(inputs)
        for name, array in outputs.items():
            self._io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def rebind(self, inputs: Buffers) -> None:
        for name, array in inputs.items():
            if not array.flags.c_contiguous:
                raise ValueError(f"the buffer for {name} is not contiguous")
            self._alive[name] = array
            self._io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._io)


def _dtypes(values: Any) -> Mapping[str, np.dtype]:
    unknown = [value for value in values if value.type not in _TYPES]
    if unknown:
        raise EngineError(
            f"The graph's {unknown[0].name} is a {unknown[0].type}, which the CPU backend cannot hold; "
            "export the engine with --precision fp32 or fp16."
        )
    return {value.name: np.dtype(_TYPES[value.type]) for value in values}


def physical_cores() -> int:
    """Physical cores this process may run on; at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return max(1, len(siblings))
