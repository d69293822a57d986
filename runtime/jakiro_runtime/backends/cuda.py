"""ONNX Runtime on an NVIDIA GPU, through I/O binding: caches and features stay in the GPU's memory.

Its own CUDA graphs are not used: they want every node on the GPU, which ONNX Runtime decides as it opens the model.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from jakiro_runtime.backends import BackendOptions, Buffers, LoadedGraphs
from jakiro_runtime.backends.cuda_driver import Driver
from jakiro_runtime.backends.cuda_memory import CudaMemory, load_plugin, memory_of
from jakiro_runtime.backends.device_array import DeviceArray
from jakiro_runtime.backends.onnxruntime import dims, dtypes, load, open_session, session_options
from jakiro_runtime.errors import EngineError
from jakiro_runtime.format.manifest import Manifest

_PROVIDER = "CUDAExecutionProvider"
# float32 is float32: by default this provider multiplies its matrices with ten bits after the point
_OPTIONS = {"use_tf32": "0"}


def open_graphs(folder: Path, manifest: Manifest, name: str, options: BackendOptions) -> LoadedGraphs:
    """Open the ONNX files of an engine directory on the GPU.

    Raises:
        EngineError: there is no GPU, onnxruntime has no CUDA, or it refuses a file
    """
    driver = Driver()
    plugin = load_plugin(options.plugin) if options.plugin is not None else None
    ort = load("onnxruntime-gpu")
    if _PROVIDER not in ort.get_available_providers():
        raise EngineError(
            f"ONNX Runtime {ort.__version__} is installed without CUDA; install the one with it: pip uninstall onnxruntime; pip "
            "install onnxruntime-gpu"
        )
    if hasattr(ort, "preload_dlls"):  # where CUDA and cuDNN come as Python packages
        ort.preload_dlls()
    settings = session_options(ort, options.threads)
    graphs = []
    for graph in ("target", "draft"):
        session = open_session(ort, folder / manifest.graphs[graph], settings, [(_PROVIDER, _OPTIONS), "CPUExecutionProvider"])
        if session.get_providers()[0] != _PROVIDER:  # it falls back without a word
            raise EngineError(
                f"ONNX Runtime {ort.__version__} does not start on this GPU; its CUDA and cuDNN must match: pip install "
                "'onnxruntime-gpu[cuda,cudnn]'"
            )
        graphs.append(CudaGraph(session, driver, plugin))
    return LoadedGraphs(graphs[0], graphs[1], flexible_rows=True)


class CudaGraph:
    """An opened session. Safe to run from several threads, each with its own binding."""

    def __init__(self, session: Any, driver: Driver, plugin: ctypes.CDLL | None) -> None:
        self._session, self._driver, self._plugin = session, driver, plugin
        self.inputs, self.outputs = dtypes(session.get_inputs()), dtypes(session.get_outputs())
        self.dims = dims(session)

    def memory(self) -> CudaMemory:
        return CudaMemory(self._driver, self._plugin)

    def bind(self, inputs: Buffers, outputs: Buffers) -> CudaBinding:
        return CudaBinding(self._session, memory_of(inputs, outputs), inputs, outputs)


class CudaBinding:
    """A session's inputs and outputs. Those on the device are bound once; those on the host for every call, because ONNX Runtime
    copies them to the device when they are bound and not when it runs."""

    def __init__(self, session: Any, memory: CudaMemory, inputs: Buffers, outputs: Buffers) -> None:
        self._session, self._memory, self._io = session, memory, session.io_binding()
        self._alive = (inputs, outputs)
        self._host: list[tuple[str, np.ndarray]] = []
        for name, array in inputs.items():
            if isinstance(array, DeviceArray):
                self._bind(self._io.bind_input, name, array)
            else:
                assert isinstance(array, np.ndarray)
                self._host.append((name, array))
        for name, array in outputs.items():
            self._bind(self._io.bind_output, name, array)

    def _bind(self, bind: Any, name: str, array: Any) -> None:
        if isinstance(array, DeviceArray):
            if not array.contiguous:
                raise ValueError(f"the buffer for {name} is not contiguous")
            bind(name, "cuda", 0, array.dtype, array.shape, array.address)
        else:
            bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._memory.synchronize()  # what was put on our stream comes before what ONNX Runtime does on its own
        for name, array in self._host:
            self._bind(self._io.bind_input, name, array)
        self._io.synchronize_inputs()
        self._session.run_with_iobinding(self._io)
        self._io.synchronize_outputs()
