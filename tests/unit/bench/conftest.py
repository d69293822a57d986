"""Prompts whose texts must be escaped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benching import LINES


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES) + "\n")
    return file
