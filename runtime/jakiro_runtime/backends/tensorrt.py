"""TensorRT and TensorRT-RTX, on the engines that jakiro-build made. Not run on a GPU.

Each binding has an execution context of its own, whose shapes and addresses never change, so that what it does can be recorded
once as a CUDA graph and launched from then on: upload the staged inputs, run, download the staged outputs. Contexts of one
conversation share their temporary memory, because they take turns on one stream.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from jakiro_runtime.backends import Array, BackendOptions, Buffers, Dims, LoadedGraphs, built_engines
from jakiro_runtime.backends.cuda_driver import Driver, describe
from jakiro_runtime.backends.cuda_memory import CudaMemory, Recording, load_plugin, memory_of
from jakiro_runtime.backends.device_array import DeviceArray
from jakiro_runtime.errors import EngineError
from jakiro_runtime.format.integrity import check_integrity
from jakiro_runtime.format.manifest import Manifest

# by the name of TensorRT's data type; NumPy has no bfloat16, and nothing here computes with one
_TYPES = {
    "FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT64": np.int64, "INT32": np.int32, "BOOL": np.bool_,
    "INT8": np.int8,
}  # fmt: skip


_REGISTERED: set[Path] = set()


def open_graphs(folder: Path, manifest: Manifest, name: str, options: BackendOptions) -> LoadedGraphs:
    """Load the engines for this machine's GPU. `name`: "tensorrt" or "tensorrt-rtx".

    Raises:
        EngineError: there are none, or no GPU, or no library; or the library refuses them
    """
    mine = built_engines.find_engine(manifest, name)
    check_integrity(manifest, folder, only=mine.files(manifest))
    if mine.plugin and options.plugin is None:
        raise EngineError(
            "These engines were built with the plugin library; name it with --plugin, as it was named to jakiro-build."
        )
    engines = EngineLoader(name, options.plugin, register_plugin=mine.plugin)
    graphs = []
    for graph in ("target", "draft"):
        refit = None
        if mine.stripped:
            refit = (folder / mine.refits.get(graph, manifest.graphs[graph]), folder / manifest.graphs[graph])
        graphs.append(engines.load(folder / mine.graphs[graph], mine.version, refit))
    return LoadedGraphs(graphs[0], graphs[1], flexible_rows=False, max_context=mine.context)


class EngineLoader:
    """TensorRT, the driver and the plugin library, ready to load engines.

    Args:
        name: "tensorrt" or "tensorrt-rtx"
        plugin: libjakiro_plugins.so, which appends rows; register_plugin: the engines have its operator in them too
    """

    def __init__(self, name: str, plugin: Path | None = None, register_plugin: bool = False) -> None:
        self.name, self.trt = name, built_engines.import_library(name)
        self._driver = Driver()
        self._plugin = load_plugin(plugin) if plugin is not None else None
        self._logger = _logger(self.trt)
        if register_plugin and plugin is not None:
            register(self.trt, plugin)
        self._runtime = self.trt.Runtime(self._logger)

    def load(self, file: Path, version: str = "another version", refit: tuple[Path, Path] | None = None) -> TensorRTGraph:
        """An engine.

        Args:
            version: of the library that built it
            refit: for an engine without its weights: the model it was parsed from, and the file whose folder has the weights

        Raises:
            EngineError: TensorRT refuses it
        """
        loader = self._runtime
        # mapped, not read: host memory is what a Jetson's GPU uses too
        with open(file, "rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as plan:
            engine = loader.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{built_engines.PRODUCTS[self.name]} {self.trt.__version__} does not load {file.name}, which {version} "
                f"built: {self._logger.reason()}; run jakiro-build again with the version that is to run it."
            )
        if refit is not None:
            _refit(self.trt, self._logger, engine, *refit)
        cache = file.with_suffix(".runtime-cache") if self.name == "tensorrt-rtx" else None
        return TensorRTGraph(self.trt, engine, self._driver, self._plugin, self._logger, cache, keep=loader)


def register(trt: Any, plugin: Path) -> None:
    """Make TensorRT know a plugin library, once a process: it refuses plugins that it knows. Raises EngineError."""
    registry = trt.get_plugin_registry()
    if plugin in _REGISTERED:
        return
    if registry.load_library(str(plugin)) is None:
        raise EngineError(f"TensorRT does not load the plugin library {plugin}; build it on this machine, see plugins/README.md.")
    _REGISTERED.add(plugin)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps the last error, for the sentence that the user reads."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = " ".join(message.split()).rstrip(".")

        def reason(self) -> str:
            """The last error's words, with what to do where CUDA's number is in them."""
            number = re.search(r"error(?: code)?:? (\d+)", self.last)
            return f"{self.last}: {describe(int(number.group(1)))}" if number else self.last or "it gives no reason"

    return Logger()


def _refit(trt: Any, logger: Any, engine: Any, model: Path, weights: Path) -> None:
    """Give an engine that was built without its weights those of the ONNX file."""
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    if not parser_refitter.refit_from_bytes(model.read_bytes(), str(weights.absolute())) or not refitter.refit_cuda_engine():
        raise EngineError(
            f"TensorRT does not take the weights of {weights.name}: {logger.reason()}; build the engines without --strip-weights."
        )


class TensorRTGraph:
    """A loaded engine. Safe to bind from several threads, each with its own memory.

    Args:
        runtime_cache: where TensorRT-RTX keeps the kernels that it compiles for this GPU
        keep: what must live as long as the engine
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        driver: Driver,
        plugin: ctypes.CDLL | None,
        logger: Any,
        runtime_cache: Path | None = None,
        keep: object = None,
    ) -> None:
        self.trt, self.engine, self.logger, self._keep = trt, engine, logger, keep
        self._driver, self._plugin = driver, plugin
        self._configuration = RtxConfiguration(trt, engine, runtime_cache) if runtime_cache is not None else None
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        of_mode = {
            mode: [name for name in names if engine.get_tensor_mode(name) == mode]
            for mode in (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT)
        }
        self.inputs = self._types(of_mode[trt.TensorIOMode.INPUT])
        self.outputs = self._types(of_mode[trt.TensorIOMode.OUTPUT])
        self.dims: Mapping[str, Dims] = {
            name: tuple(dim if dim >= 0 else None for dim in engine.get_tensor_shape(name)) for name in names
        }

    def _types(self, names: list[str]) -> Mapping[str, np.dtype]:
        found = {}
        for name in names:
            kind = self.engine.get_tensor_dtype(name).name
            if kind not in _TYPES or (kind == "BF16" and name == "logits"):
                raise EngineError(f"The engine's {name} is {kind}, which this backend cannot hold; export with --precision fp16.")
            found[name] = np.dtype(_TYPES[kind])
        return found

    def memory(self) -> CudaMemory:
        return CudaMemory(self._driver, self._plugin, self._longest_cache())

    def _longest_cache(self) -> int:
        """The most slots that some profile takes; the capacity is a cache's third axis."""
        profiles = range(self.engine.num_optimization_profiles)
        name = next(name for name in self.inputs if name.startswith("past_key"))
        return max(int(self.engine.get_tensor_profile_shape(name, profile)[2][2]) for profile in profiles)

    def bind(self, inputs: Buffers, outputs: Buffers) -> TensorRTBinding:
        return TensorRTBinding(self, memory_of(inputs, outputs), inputs, outputs)

    def create_context(self) -> Any:
        """An execution context whose temporary memory is given to it."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._configuration is None:
            context = self.engine.create_execution_context(strategy)
        else:
            context = self.engine.create_execution_context(self._configuration.settings(strategy))
        if context is None:
            raise EngineError(f"TensorRT makes no execution context on this GPU: {self.logger.reason()}.")
        return context

    def compiled(self) -> None:
        """After a call of new shapes: TensorRT-RTX may have compiled kernels, which are kept for the next start."""
        if self._configuration is not None:
            self._configuration.save()

    def profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The first optimization profile that takes these shapes. Raises EngineError where none does."""
        refusals = []
        for number in range(self.engine.num_optimization_profiles):
            refusal = self._refusal(number, shapes)
            if refusal is None:
                return number
            refusals.append(refusal)
        raise EngineError(
            f"These engines were not built for this call: {refusals[-1]}; build with larger --chunk, --batch or --max-context, "
            "or ask for less."
        )

    def _refusal(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        for name, shape in shapes.items():
            least, _, most = (tuple(reach) for reach in self.engine.get_tensor_profile_shape(name, profile))
            fits = len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))
            if not fits:
                return f"{name} has the shape {list(shape)}, and {list(least)} to {list(most)} were built"
        return None


class RtxConfiguration:
    """How TensorRT-RTX runs an engine: kernels are compiled for a shape when it is bound, not behind a fallback that a recording
    would keep; and what was compiled is read again at the next start."""

    def __init__(self, trt: Any, engine: Any, file: Path) -> None:
        self._trt, self._engine, self._file = trt, engine, file
        runtime_config = engine.create_runtime_config()
        runtime_config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the runtime records calls itself, their copies too
        self._runtime_config, self._runtime_cache = runtime_config, runtime_config.create_runtime_cache()
        self._saved = file.read_bytes() if file.is_file() else b""
        if self._saved:
            self._runtime_cache.deserialize(self._saved)  # that of another version is refused, and written anew
        runtime_config.set_runtime_cache(self._runtime_cache)

    def settings(self, strategy: Any) -> Any:
        """For a context that allocates so."""
        self._runtime_config.set_execution_context_allocation_strategy(strategy)
        return self._runtime_config

    def save(self) -> None:
        """Keep what was compiled, where the engine directory can be written."""
        data = bytes(memoryview(self._runtime_cache.serialize()))
        if data != self._saved:
            partial = self._file.with_name(f".{self._file.name}.{os.getpid()}")
            with suppress(OSError):
                partial.write_bytes(data)
                partial.replace(self._file)
            self._saved = data


class TensorRTBinding:
    """An execution context with its shapes and addresses; recorded as a CUDA graph when it runs for the second time."""

    def __init__(self, graph: TensorRTGraph, memory: CudaMemory, inputs: Buffers, outputs: Buffers) -> None:
        engine = graph.engine
        profile = graph.profile({name: array.shape for name, array in inputs.items()})
        self._graph, self._memory, self._alive = graph, memory, [inputs, outputs]
        self._context = context = graph.create_context()
        size = engine.device_memory_size_v2  # of the largest profile, as TensorRT demands
        graph.logger.last = ""
        context.set_device_memory(memory.workspace(size), size)
        if graph.logger.last:  # it returns nothing
            raise EngineError(f"TensorRT refuses {size} bytes for temporary values: {graph.logger.reason()}.")
        if not context.set_optimization_profile_async(profile, memory.stream):
            raise EngineError(f"TensorRT refuses the optimization profile {profile}.")
        self._uploads: list[tuple[DeviceArray, np.ndarray]] = []
        self._downloads: list[tuple[np.ndarray, DeviceArray]] = []
        for name, array in inputs.items():
            if not context.set_input_shape(name, array.shape):
                raise EngineError(f"TensorRT refuses the shape {list(array.shape)} of {name}.")
            self._place(name, array, self._uploads)
        for name in graph.outputs:
            given = outputs.get(name)
            if given is None:  # nobody wants it, and it must be somewhere
                given = memory.empty(tuple(context.get_tensor_shape(name)), graph.outputs[name])
            elif tuple(context.get_tensor_shape(name)) != given.shape:
                raise EngineError(
                    f"The engine's {name} has the shape {list(context.get_tensor_shape(name))}, and {list(given.shape)} was "
                    "expected; run jakiro-build again."
                )
            self._place(name, given, self._downloads)
        self._warm, self._refused = False, False
        self._recording: Recording | None = None

    def _place(self, name: str, array: Array, copies: list[Any]) -> None:
        """Give the context a tensor's address: its own, or, for one on the host, that of a copy on the device."""
        if isinstance(array, DeviceArray):
            if not array.contiguous:
                raise ValueError(f"the buffer for {name} is not contiguous")
            device = array
        else:
            assert isinstance(array, np.ndarray)
            device = self._memory.empty(array.shape, array.dtype)
            copies.append((device, array) if copies is self._uploads else (array, device))
        self._alive.append({name: device})
        if not self._context.set_tensor_address(name, device.address):
            raise EngineError(f"TensorRT refuses the memory of {name}.")

    def run(self) -> None:
        memory = self._memory
        if self._recording is None and self._warm and not self._refused and self._recordable():
            self._recording = memory.record(self._enqueue)
            self._refused = self._recording is None
        if self._recording is not None:
            self._recording.launch()
        else:
            self._enqueue()
        memory.synchronize()
        if not self._warm:  # the first run let TensorRT settle what it does once
            self._warm = True
            self._graph.compiled()

    def _recordable(self) -> bool:
        """TensorRT-RTX may still be compiling for these shapes; TensorRT is ready after one run."""
        asks = getattr(self._context, "is_stream_capturable", None)
        return asks is None or bool(asks(self._memory.stream))

    def _enqueue(self) -> None:
        for device, host in self._uploads:
            self._memory.enqueue_upload(device, host)
        if not self._context.execute_async_v3(self._memory.stream):
            raise EngineError(f"TensorRT fails to run an engine: {self._graph.logger.reason()}.")
        for host, device in self._downloads:
            self._memory.enqueue_download(host, device)
