"""A machine with a GPU, made of host memory: what jakiro_runtime's GPU backends do there, step by step."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import fake_tensorrt
from fake_building import built_for
from fake_cuda import FakeCuda
from jakiro_runtime import Engine
from jakiro_runtime.backends import cuda as cuda_backend
from jakiro_runtime.backends import cuda_memory, gpu
from jakiro_runtime.backends import tensorrt as tensorrt_backend
from jakiro_runtime.format.manifest import Manifest


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The fake GPU, in the place of the real one's driver and TensorRT."""
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    for backend in (cuda_backend, tensorrt_backend):
        monkeypatch.setattr(backend, "Driver", lambda: fake)
    monkeypatch.setattr(fake_tensorrt, "cuda", fake, raising=False)
    monkeypatch.setattr(fake_tensorrt, "contexts", [])
    monkeypatch.setattr(gpu, "find", lambda *_, **__: gpu.Device("A GPU of this test", 87, 8 << 30, 16 << 30, True))
    return fake


@pytest.fixture
def directory(tiny_numerical: Path, tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the half-precision engine, built for the fake GPU; its answers go on until they are as long as was asked for."""
    copy = Path(shutil.copytree(tiny_numerical, tmp_path / "engine"))
    manifest = Manifest.read(copy)
    manifest.model.eos_token_ids = []
    manifest.write(copy)
    return built_for(copy, monkeypatch)


@pytest.fixture(scope="session")
def plugin_path() -> Path:
    """The plugin library's CPU build: its commit kernel is the one of the GPU, from the same source."""
    import plugin_library

    return Path(plugin_library.build())


@pytest.fixture
def plugin(plugin_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, its launches on the fake GPU's stream."""
    import ctypes

    load = cuda_memory.load_plugin

    class Queued:
        def __init__(self, path: Path) -> None:
            self._library = load(path)

        def jakiro_kv_commit(self, arguments: Any, stream: Any) -> int:
            copied = type(arguments._obj).from_buffer_copy(arguments._obj)  # as a launch copies its arguments
            assert stream.value in cuda.streams
            cuda.enqueue(lambda: self._launch(copied))
            return 0

        def _launch(self, arguments: Any) -> None:
            self._library.jakiro_shim_clear(0)  # what other tests told the shim of their buffers
            assert self._library.jakiro_kv_commit(ctypes.byref(arguments), None) == 0

    monkeypatch.setattr("jakiro_runtime.backends.tensorrt.load_plugin", Queued)
    return plugin_path


@pytest.fixture(scope="session")
def reference(tiny_numerical: Path) -> Engine:
    """The same engine on the CPU, with one thread as the fake TensorRT has."""
    engine = Engine.open(tiny_numerical, "onnxruntime", threads=1)
    engine.bundle = engine.bundle.replace(eos_token_ids=frozenset())
    return engine
