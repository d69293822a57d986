"""TensorRT as far as jakiro_runtime uses it, on the fake GPU: an engine is an ONNX file and its profiles."""

from __future__ import annotations

import gc
import json
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fake_cuda import FakeCuda, view

__version__ = "10.99.0"
_SESSIONS: dict[str, Any] = {}
_NAMES = {
    "tensor(int64)": "INT64", "tensor(bool)": "BOOL", "tensor(float16)": "HALF", "tensor(float)": "FLOAT",
}  # fmt: skip
_DTYPES = {"INT64": np.int64, "BOOL": np.bool_, "HALF": np.float16, "FLOAT": np.float32}
DataType = Enum("DataType", [*_DTYPES, "BF16"])
TensorIOMode = Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
ExecutionContextAllocationStrategy = Enum("ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
WORKSPACE = 1 << 16
cuda = FakeCuda()  # the fixture puts the one of the test here
contexts: list[ExecutionContext] = []


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger: Any = logger

    def deserialize_cuda_engine(self, data: Any) -> Engine | None:
        try:
            return Engine(json.loads(bytes(memoryview(data))), self.logger)
        except ValueError:
            self.logger.log(ILogger.Severity.ERROR, "the plan is of another version.")
            return None


class Registry:
    """Refuses plugins that it knows, as TensorRT does."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def load_library(self, path: str) -> object | None:
        if path in self.known:
            return None
        self.known.append(path)
        return object()


registry = Registry()


def get_plugin_registry() -> Registry:
    return registry


def session(path: str) -> Any:
    if path not in _SESSIONS:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        _SESSIONS[path] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return _SESSIONS[path]


class Engine:
    def __init__(self, plan: dict[str, Any], logger: Any = None) -> None:
        self.logger = logger
        self.profiles: list[dict[str, list[list[int]]]] = plan["profiles"]
        self.session = session(plan["onnx"])
        assert Path(plan["onnx"]).is_file()
        self.kinds = {v.name: _NAMES[v.type] for v in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.kinds.update(plan.get("kinds", {}))
        values = (*self.session.get_inputs(), *self.session.get_outputs())
        self.shapes = {v.name: tuple(dim if isinstance(dim, int) else -1 for dim in v.shape) for v in values}
        self.reads = [v.name for v in self.session.get_inputs()]
        self.names = list(self.kinds)
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(self.profiles)

    def get_tensor_name(self, number: int) -> str:
        return self.names[number]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.reads else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.kinds[name]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile][name]]

    @property
    def device_memory_size_v2(self) -> int:
        return WORKSPACE * (2 if "logits" in self.kinds else 1)

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> ExecutionContext:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        contexts.append(ExecutionContext(self))
        return contexts[-1]


class ExecutionContext:
    capturable: bool | None = None  # what TensorRT-RTX would say

    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile = engine, -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.runs = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert cuda.on_device(address, size)
        assert address % 256 == 0
        self.memory = (address, size)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in cuda.streams
        self.profile = profile
        return 0 <= profile < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profiles[self.profile][name]
        self.shapes[name] = tuple(shape)
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Known once every input's shape is; before that TensorRT says -1."""
        assert set(self.shapes) == set(self.engine.reads)
        ids = self.shapes["input_ids"]
        axes: dict[str, int] = {"batch": ids[0], "rows": ids[1], "selected": self.shapes.get("logit_rows", (0, 0))[1]}
        found = next(v for v in (*self.engine.session.get_outputs(), *self.engine.session.get_inputs()) if v.name == name)
        return tuple(axes[dim] if isinstance(dim, str) else dim for dim in found.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, f"{name} is not aligned"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in cuda.streams
        if cuda.recorded is not None:
            gc.collect()  # Python may do so at any time
        assert set(self.addresses) == set(self.engine.names), "every tensor needs an address"
        assert self.memory[1] >= self.engine.device_memory_size_v2
        self.runs += 1
        shapes = {
            name: self.get_tensor_shape(name) if name not in self.shapes else self.shapes[name] for name in self.engine.names
        }
        tensors = {name: (self.addresses[name], shapes[name], _DTYPES[self.engine.kinds[name]]) for name in self.engine.names}
        for address, shape, dtype in tensors.values():
            assert cuda.on_device(address, int(np.prod(shape)) * np.dtype(dtype).itemsize), "a tensor that is not on the device"
        reads, model, workspace = self.engine.reads, self.engine.session, self.memory

        def work() -> None:
            outputs = [name for name in tensors if name not in reads]
            view(workspace[0], (workspace[1],), np.uint8)[:] = 0x77  # temporary values: nobody else's may be there
            values = model.run(outputs, {name: view(*tensors[name]) for name in reads})
            for name, value in zip(outputs, values, strict=True):
                view(*tensors[name])[...] = value

        cuda.enqueue(work)
        return True


class CapturableContext(ExecutionContext):
    """TensorRT-RTX's, which compiles in the background for a while."""

    def is_stream_capturable(self, stream: int) -> bool:
        return self.runs >= 3
