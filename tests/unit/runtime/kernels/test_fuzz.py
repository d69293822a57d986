"""Random calls of every kernel under AddressSanitizer and UBSan, a few seconds of what `make fuzz-kernels` does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jakiro_runtime import kernels
from paths import ROOT

pytestmark = pytest.mark.slow  # a build of its own


def test_random_calls_touch_no_foreign_memory(tmp_path: Path) -> None:
    if shutil.which("make") is None or kernels.library() is None:
        pytest.skip("no fuzzing: it needs make, a C++ compiler and a processor with AVX2")
    out = tmp_path / "fuzz_kernels"
    command = ["make", "--no-print-directory", "fuzz-kernels", f"FUZZER={out}", "SECONDS=10", "SEED=1", "FUZZ_FLAGS=-O0"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.count(" computed, ") == 18
