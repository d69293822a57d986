"""`make test-gpu`, tried on a GPU made of host memory and on a machine without one: the checks run, and they would notice."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checks
import make_kit
import plugin_library
import tier0_probe as probe
import tier1_kernels as kernels
import tier1b_memory as memory_tier
import tier_harness as harness
import tier_plugin
import tiny
from fake_cuda import FakeCuda
from jakiro_runtime import Engine
from jakiro_runtime.backends.cuda_memory import CudaMemory
from paths import ROOT

PROMPTS = [np.random.default_rng(n).integers(3, tiny.VOCAB, n).tolist() for n in (2, 40)]
RUN = ROOT / "tests" / "gpu" / "run.py"


def test_the_checks_pass_on_what_is_right(directory: Path, reference: Engine, tmp_path: Path) -> None:
    checks.Answers.of(reference, PROMPTS, 12).write(tmp_path / "answers.json")
    answers = checks.Answers.read(tmp_path / "answers.json")
    assert checks.tokens(directory, answers, "tensorrt")["plain equals speculative"] == 2
    assert checks.seeds(directory, "tensorrt", PROMPTS[1], 12)["tokens"] == 12
    found = checks.recorded(directory, "tensorrt", PROMPTS[1])
    assert all(not flags.startswith("0 of") for flags in found.values())
    assert checks.speed(directory, "tensorrt", PROMPTS[1], 12)["speculative tokens/s"] > 0


def test_other_tokens_are_noticed(reference: Engine) -> None:
    answers = checks.Answers.of(reference, PROMPTS[1:], 12)
    tokens = answers.tokens[0]
    assert answers.agree(0, tokens) is None
    with pytest.raises(AssertionError, match="token 7 is"):
        answers.agree(0, [*tokens[:7], (tokens[7] + 1) % tiny.VOCAB, *tokens[8:]])
    (first, best), (second, _) = answers.best[0][7]
    tied = [list(each) for each in answers.best[0]]
    tied[7] = [(first, best), (second, best - checks.NEAR_TIE / 2)]
    assert replace(answers, best=[tied]).agree(0, [*tokens[:7], second, *tokens[8:]]) == 7


def test_graphs_that_were_not_recorded_are_noticed(directory: Path, cuda: FakeCuda) -> None:
    cuda.recordable = False
    with pytest.raises(AssertionError, match="no call of the target was recorded"):
        checks.recorded(directory, "tensorrt", PROMPTS[1])


class Queued:
    """The plugin's CPU build, its launches in the fake stream's order."""

    def __init__(self, cuda: FakeCuda, path: Path) -> None:
        self._library, self._cuda, self.turned = plugin_library.Library(path).c, cuda, False
        self.jakiro_expert_dispatch_workspace = self._library.jakiro_expert_dispatch_workspace

    def _put(self, function: Any, arguments: Any) -> int:
        copied = type(arguments._obj).from_buffer_copy(arguments._obj)

        def work() -> None:
            self._library.jakiro_shim_clear(0)
            assert function(ctypes.byref(copied), None) == 0

        self._cuda.enqueue(work)
        return 0

    def jakiro_expert_dispatch(self, arguments: Any, stream: object) -> int:
        arguments._obj.contrast ^= self.turned
        return self._put(self._library.jakiro_expert_dispatch, arguments)

    def jakiro_kv_commit(self, arguments: Any, stream: object) -> int:
        return self._put(self._library.jakiro_kv_commit, arguments)


def outcomes(list: harness.Checklist) -> set[str]:
    return {result["outcome"] for result in list.results}


def test_tier_1_passes_on_the_kernels_and_notices_a_turned_sign(
    cuda: FakeCuda, plugin_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "cases", lambda small: [(1, 64, 48, 2, 2, True), (9, 50, 34, 4, 1, True)])
    library = Queued(cuda, plugin_path)
    memory = CudaMemory(cuda, library)  # type: ignore[arg-type]
    found = harness.Checklist("1", "kernels", None)
    kernels.check_dispatch(found, memory, library, small=True)
    kernels.check_rows_alone(found, memory, library)
    kernels.check_commit(found, memory, library)
    assert outcomes(found) == {"passed"}, found.results
    library.turned = True
    wrong = harness.Checklist("1", "kernels", None)
    kernels.check_dispatch(wrong, memory, library, small=True)
    assert outcomes(wrong) == {"failed"}
    assert "contrast" in wrong.results[0]["reason"]


def test_tier_1b_passes_on_the_memory_and_notices_a_lost_copy(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, found = CudaMemory(cuda), harness.Checklist("1b", "memory", None)  # type: ignore[arg-type]
    memory_tier.check_views(found, memory)
    memory_tier.check_recording(found, memory)
    assert outcomes(found) == {"passed"}, found.results
    monkeypatch.setattr(FakeCuda, "copy", lambda *_: None)
    wrong = harness.Checklist("1b", "memory", None)
    memory_tier.check_recording(wrong, memory)
    assert "failed" in outcomes(wrong)


def test_a_tier_that_crashes_does_not_hide_what_it_found(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests' / 'gpu' / 'tiers')!r})\n"
        "import tier_harness as harness, os, pathlib\n"
        f"found = harness.Checklist('9', 'nine', pathlib.Path({str(tmp_path / 'nine.json')!r}))\n"
        "with found.check('good') as figures:\n    figures['us'] = 5\n"
        "with found.check('bad'):\n    raise harness.Skip('install nvcc')\n"
        "os.abort()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode != 0
    report = json.loads((tmp_path / "nine.json").read_text())
    assert [(each["check"], each["outcome"], each["reason"]) for each in report["checks"]] == [
        ("good", "passed", ""), ("bad", "skipped", "install nvcc")
    ]  # fmt: skip


def test_every_tier_says_which_package_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (probe, harness):
        monkeypatch.setattr(module, "has", lambda name: False)
    monkeypatch.setattr(probe, "nvcc", lambda: None)
    monkeypatch.delenv("JAKIRO_ENGINE", raising=False)
    said = probe.reasons(gpu=True)
    for tier, words in {
        "1": ("numpy", "nvcc"), "1b": ("numpy",), "2": ("tokenizers", "onnxruntime"), "3": ("tensorrt", "onnx"),
        "4": ("tensorrt-rtx-cu13-libs",), "5": ("JAKIRO_ENGINE",),
    }.items():  # fmt: skip
        assert all(word in said[tier] for word in words), (tier, said[tier])


def test_without_a_gpu_every_tier_says_so_and_the_exit_status_is_1(tmp_path: Path) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("this machine has a driver")
    except OSError:
        pass
    done = subprocess.run([sys.executable, str(RUN), "0", "1", "1b"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.count("There is no NVIDIA driver on this machine") == 1
    assert done.stdout.count("there is no GPU") >= 2
    assert "Traceback" not in done.stdout + done.stderr
    assert subprocess.run([sys.executable, str(RUN), "7"], capture_output=True).returncode == 2


def test_the_kit_s_tiny_engine_is_exported_with_the_answers_that_it_gives(tmp_path: Path) -> None:
    make_kit.make_tiny(tmp_path / "tiny")
    answers = checks.Answers.read(tmp_path / "tiny" / "answers.json")
    assert len(answers.prompts) == len(answers.tokens) == 4
    found = checks.answer(Engine.open(tmp_path / "tiny", "onnxruntime", threads=1), answers.prompts[1], 48, True)[0]
    answers.agree(1, found)


def test_a_tier_s_own_build_compiles_every_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(tier_plugin, "nvcc", lambda: "nvcc")
    monkeypatch.setattr(tier_plugin, "_run", commands.append)
    monkeypatch.setattr(tier_plugin, "ROOT", tmp_path)
    monkeypatch.delenv("JAKIRO_PLUGIN", raising=False)
    shutil.copytree(ROOT / "plugins", tmp_path / "plugins")
    tier_plugin.plugin_library(90, {})
    compiled = {Path(word).name for command in commands for word in command if word.endswith(".cu")}
    cmake = set(re.findall(r"kernels/(\w+\.cu)", (ROOT / "plugins" / "CMakeLists.txt").read_text()))
    assert compiled == cmake == {file.name for file in (ROOT / "plugins" / "kernels").glob("*.cu")}


def test_the_kit_says_in_words_what_a_bare_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Packed without an engine and kernels, unpacked elsewhere, run by a Python that sees no package at all."""

    def no_torch(out: Path) -> None:
        raise ImportError("no torch", name="torch")

    monkeypatch.setattr(make_kit, "make_tiny", no_torch)
    make_kit.make_kit(tmp_path / "kit.tar.gz", libraries=False)
    assert "torch is not installed" in capsys.readouterr().err
    with tarfile.open(tmp_path / "kit.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    command = [str(tmp_path / "bare" / "bin" / "python"), "run.py", "0", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "jakiro-gpu-kit", env={"PATH": ""})
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 1
    for words in ("install numpy", "tokenizers", "tensorrt-rtx-cu13-libs", "make test-gpu-kit"):
        assert words in done.stdout, done.stdout
