"""The checks of `make test-gpu`, tried on a GPU made of host memory: they run, and they would notice."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

import checks
import contract
import plugin_library
import tiny
from answers import plain
from fake_cuda import FakeCuda
from jakiro_runtime import Engine
from jakiro_runtime.backends import gpu
from jakiro_runtime.backends.cuda_memory import CudaMemory

PROMPTS = [np.random.default_rng(n).integers(3, tiny.VOCAB, n).tolist() for n in (2, 40)]


def test_the_checks_pass_on_what_is_right(directory: Path, reference: Engine, plugin: Path) -> None:
    assert checks.tokens(directory, reference, "tensorrt", PROMPTS, 12)["plain equals speculative"] == 2
    assert checks.tokens(directory, reference, "tensorrt", PROMPTS, 12, plugin)["near ties"] == 0
    assert checks.seeds(directory, "tensorrt", PROMPTS[1], 12)["tokens"] == 12
    assert checks.recorded(directory, "tensorrt", PROMPTS[1]) == {"target": "1 of 3 shapes", "draft": "2 of 2 shapes"}
    assert checks.speed(directory, "tensorrt", PROMPTS[1], 12)["speculative tokens/s"] > 0


def test_other_tokens_are_noticed(reference: Engine) -> None:
    tokens = plain(reference, PROMPTS[1], 12).tokens
    assert checks.agree(reference, PROMPTS[1], tokens) is None
    with pytest.raises(AssertionError, match="token 7 is"):
        checks.agree(reference, PROMPTS[1], [*tokens[:7], (tokens[7] + 1) % tiny.VOCAB, *tokens[8:]])


def test_graphs_that_were_not_recorded_are_noticed(directory: Path, cuda: FakeCuda) -> None:
    cuda.recordable = False
    with pytest.raises(AssertionError, match="no call of the target was recorded"):
        checks.recorded(directory, "tensorrt", PROMPTS[1])


class Now:
    """The plugin's CPU build, its launches after what the stream holds."""

    def __init__(self, cuda: FakeCuda, path: Path) -> None:
        library = plugin_library.Library(path)
        library.clear()
        self.jakiro_expert_dispatch_workspace = library.c.jakiro_expert_dispatch_workspace
        self._library, self._cuda, self.turned = library.c, cuda, False

    def jakiro_expert_dispatch(self, call: object, stream: object) -> int:
        self._cuda.synchronize(0)
        call._obj.contrast ^= self.turned  # type: ignore[attr-defined]
        return int(self._library.jakiro_expert_dispatch(call, None))


@pytest.mark.parametrize("kind", ["float", "half", "bfloat16"])
def test_expert_dispatch_is_checked(cuda: FakeCuda, plugin_path: Path, kind: str) -> None:
    problem, library = plugin_library.Problem.random(kind, 3, 64, 48, 2, 2), Now(cuda, plugin_path)
    assert checks.dispatch(CudaMemory(cuda), library, problem, repeats=2)["us"] > 0
    library.turned = True
    with pytest.raises(AssertionError, match="contrast: off by"):
        checks.dispatch(CudaMemory(cuda), library, problem)


def test_the_report_says_what_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """On tests of our own: passed with figures, failed with the reason, skipped with the reason."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\n"
        "def test_good(record_property):\n    record_property('speed', {'tokens/s': 5})\n"
        "def test_bad():\n    assert 1 == 2, 'one is not two'\n"
        "def test_none():\n    pytest.skip('no nvcc')\n"
    )
    monkeypatch.setattr(contract, "HERE", tmp_path)
    monkeypatch.setattr(contract, "WORK", tmp_path / "out")
    monkeypatch.setattr(contract.gpu, "find", lambda **_: gpu.Device("Some GPU", 87, 1 << 30, 8 << 30, True))
    monkeypatch.setattr(sys, "argv", ["contract.py", "-p", "no:cacheprovider", "-o", "markers=gpu: x"])
    assert contract.main() == 1
    said = (tmp_path / "out" / "report.txt").read_text()
    assert "Some GPU" in said
    assert 'speed: {"tokens/s": 5}' in said
    assert "one is not two" in said
    assert "no nvcc" in said
    assert "1 passed, 1 failed, 1 skipped" in said
    assert said in capsys.readouterr().out


def test_without_a_gpu_there_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert contract.main() == 1
        assert capsys.readouterr().err.count("\n") == 1
