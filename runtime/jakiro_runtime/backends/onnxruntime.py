"""ONNX Runtime on the CPU, through I/O binding: buffers are shared, nothing is copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jakiro_runtime.backends import BackendOptions, Buffers, Dims, LoadedGraphs
from jakiro_runtime.backends.host import HostMemory
from jakiro_runtime.errors import EngineError
from jakiro_runtime.format.manifest import Manifest
from jakiro_runtime.kernels import library, needed
from jakiro_runtime.kernels.cpus import physical_cores

_TYPES = {
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


def open_graphs(folder: Path, manifest: Manifest, name: str, options: BackendOptions) -> LoadedGraphs:
    """Open the ONNX files of an engine directory on the CPU.

    Raises:
        EngineError: onnxruntime is not installed, or it refuses a file
    """
    target, draft = (open_graph(folder / manifest.graphs[graph], options.threads) for graph in ("target", "draft"))
    return LoadedGraphs(target, draft, flexible_rows=True)


def open_graph(file: Path, threads: int | None = None) -> OnnxRuntimeGraph:
    """Open one ONNX file on the CPU. Raises EngineError as `open_graphs` does."""
    ort = load("onnxruntime")
    options = session_options(ort, threads)
    kernels = library() if needed(file) else None
    if kernels is not None:
        options.register_custom_ops_library(str(kernels))
    return OnnxRuntimeGraph(open_session(ort, file, options, ["CPUExecutionProvider"]))


def load(package: str) -> Any:
    """Import onnxruntime; `package` is what to install where it is missing. Raises EngineError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"This engine needs {package}, which is not installed; install it with: pip install {package}"
        ) from error
    return onnxruntime


def session_options(ort: Any, threads: int | None) -> Any:
    """Options of a session; `threads` None takes one thread per physical core this process may use."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # a waiting thread spins through the gap between two operators, then sleeps: where other processes want the cores, spinning
    # for a millisecond, the default, takes the time of the thread it waits for
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    # draft and target take turns on the same cores: an idle pool that spins takes them from the other
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # int4 weights times activations as they are; by itself ONNX Runtime would round these to int8
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return options


def open_session(ort: Any, path: Path, options: Any, providers: list[Any]) -> Any:
    """Open one ONNX file. Raises EngineError where ONNX Runtime refuses it."""
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises types of its own for each status code
        reason = str(error).splitlines()[0]
        raise EngineError(f"ONNX Runtime {ort.__version__} refuses {path}: {reason}") from error


class OnnxRuntimeGraph:
    """An opened session. Safe to run from several threads, each with its own binding."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = dtypes(session.get_inputs())
        self.outputs = dtypes(session.get_outputs())
        self.dims = dims(session)

    def memory(self) -> HostMemory:
        return HostMemory()

    def bind(self, inputs: Buffers, outputs: Buffers) -> OnnxRuntimeBinding:
        return OnnxRuntimeBinding(self._session, inputs, outputs)


class OnnxRuntimeBinding:
    def __init__(self, session: Any, inputs: Buffers, outputs: Buffers) -> None:
        self._session, self._io = session, session.io_binding()
        self._alive = (inputs, outputs)  # the binding holds addresses only
        for bind, arrays in ((self._io.bind_input, inputs), (self._io.bind_output, outputs)):
            for name, array in arrays.items():
                assert isinstance(array, np.ndarray)
                if not array.flags.c_contiguous:
                    raise ValueError(f"the buffer for {name} is not contiguous")
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._io)


def dtypes(values: Any) -> Mapping[str, np.dtype]:
    """The element type of each input or output of a session, by name. Raises EngineError for one NumPy does not have."""
    unknown = [value for value in values if value.type not in _TYPES]
    if unknown:
        raise EngineError(
            f"The graph's {unknown[0].name} is a {unknown[0].type}, which ONNX Runtime's backends cannot hold; "
            "export the engine with --precision fp32 or fp16."
        )
    return {value.name: np.dtype(_TYPES[value.type]) for value in values}


def dims(session: Any) -> Mapping[str, Dims]:
    """The lengths of the axes of a session's inputs and outputs, by name; None where one varies."""
    values = [*session.get_inputs(), *session.get_outputs()]
    return {value.name: tuple(dim if isinstance(dim, int) else None for dim in value.shape) for value in values}
