"""ONNX Runtime on CUDA, on a GPU made of host memory: what is bound where, and the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import tiny
from answers import run
from fake_cuda import FakeCuda, view
from jakiro_runtime import Engine, EngineError

PROMPT = np.random.default_rng(0).integers(3, tiny.VOCAB, 40).tolist()


class Session:
    """ONNX Runtime's, with device memory that is the fake GPU's."""

    cuda: FakeCuda
    provider = "CUDAExecutionProvider"
    bound: list[tuple[str, str, Any]]

    def __init__(self, path: str, options: Any, providers: list[str]) -> None:
        assert providers[0] == ("CUDAExecutionProvider", {"use_tf32": "0"})  # float32 products are float32's
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

    def get_providers(self) -> list[str]:
        return [self.provider, "CPUExecutionProvider"]

    def io_binding(self) -> IOBinding:
        return IOBinding()

    def run_with_iobinding(self, io: IOBinding) -> None:
        """On a stream of its own: what waits on another stream has not happened."""
        outputs = list(io.outputs)
        values = self._session.run(outputs, {name: view(*place) for name, place in io.inputs.items()})
        for name, value in zip(outputs, values, strict=True):
            view(*io.outputs[name])[...] = value


class IOBinding:
    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.copies: dict[str, np.ndarray] = {}

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: Any, address: int) -> None:
        """What lies on the host is copied now, as ONNX Runtime does it; what changes afterwards is not seen."""
        self._check(name, device, dtype, shape, address)
        if device == "cpu":
            self.copies[name] = view(address, shape, dtype).copy()
            address = self.copies[name].ctypes.data
        self.inputs[name] = (address, shape, dtype)

    def synchronize_inputs(self) -> None: ...

    def synchronize_outputs(self) -> None: ...

    def bind_output(self, name: str, device: str, number: int, dtype: Any, shape: Any, address: int) -> None:
        self._check(name, device, dtype, shape, address)
        self.outputs[name] = (address, shape, dtype)

    def _check(self, name: str, device: str, dtype: Any, shape: Any, address: int) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert Session.cuda.on_device(address, size) == (device == "cuda")
        Session.bound.append((name, device, np.dtype(dtype)))


@pytest.fixture
def engine(tiny_numerical: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Engine:
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(Session, "cuda", cuda, raising=False)
    monkeypatch.setattr(Session, "bound", [], raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])

    def session(path: str, options: Any, providers: list[str]) -> Any:
        return (
            real(path, options, providers=providers)
            if providers == ["CPUExecutionProvider"]
            else Session(path, options, providers)
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    engine = Engine.open(tiny_numerical, "cuda", threads=1)
    engine.bundle = engine.bundle.replace(eos_token_ids=frozenset())
    return engine


def test_the_same_tokens_and_features_that_stay(engine: Engine, reference: Engine, cuda: FakeCuda) -> None:
    expected = run(reference.session(chunk=32), PROMPT)
    assert run(engine.session(chunk=32), PROMPT).tokens == expected.tokens
    cuda.traffic.down.clear()
    expected = run(reference.session(chunk=32, lookup=False), PROMPT)
    found = run(engine.session(chunk=32, lookup=False), PROMPT)
    assert found.tokens == expected.tokens  # plain decoding may differ at a near tie: the engine is numerical
    assert found.stats.accepted == expected.stats.accepted
    on_host = {(name, dtype) for name, device, dtype in Session.bound if device == "cpu"}
    assert {dtype for _, dtype in on_host} == {np.dtype(np.int64), np.dtype(bool)}, "whole numbers and masks alone"
    on_device = {name.split(".")[0] for name, device, _ in Session.bound if device == "cuda"}
    assert on_device == {"past_key", "past_value", "new_key", "new_value", "hidden_states", "tree_scores"}
    assert not cuda.traffic.down, "and we read nothing back ourselves"


def test_onnx_runtime_waits_for_our_stream(engine: Engine, reference: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that precede a call are on another stream than the call."""
    expected = run(reference.session(chunk=32), PROMPT).tokens
    monkeypatch.setattr("jakiro_runtime.backends.cuda_memory.CudaMemory.synchronize", lambda self: None)
    assert run(engine.session(chunk=32), PROMPT).tokens != expected


def test_onnx_runtime_without_cuda(tiny_numerical: Path, cuda: FakeCuda) -> None:
    with pytest.raises(EngineError, match="installed without CUDA.*onnxruntime-gpu"):
        Engine.open(tiny_numerical, "cuda")


def test_onnx_runtime_that_falls_back_to_the_cpu(engine: Engine, tiny_numerical: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "provider", "CPUExecutionProvider")
    with pytest.raises(EngineError, match="does not start on this GPU"):
        Engine.open(tiny_numerical, "cuda")
