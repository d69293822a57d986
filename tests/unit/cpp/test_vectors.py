"""The golden vectors of tests/vectors: the C++ runtime gives what stands there, and its program would notice if it did not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import vectors


def run(build: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([build / "jakiro_vectors", *files], capture_output=True, text=True, check=False)


def test_the_cpp_runtime_gives_what_the_vectors_say(build: Path) -> None:
    files = [vectors.FOLDER / f"{name}.json" for name in vectors.FILES]
    done = run(build, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{sum(len(json.loads(file.read_text())) for file in files)} cases\n"


@pytest.mark.parametrize("name", vectors.FILES)
def test_a_vector_that_was_changed_is_noticed(build: Path, tmp_path: Path, name: str) -> None:
    def changed(value: object) -> object:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + 1
        if isinstance(value, list):
            return [*value[:-1], changed(value[-1])] if value else [0]
        return {key: changed(each) for key, each in value.items()} if isinstance(value, dict) else f"{value}x"

    cases = json.loads((vectors.FOLDER / f"{name}.json").read_text())
    file = tmp_path / "one.json"
    for case in cases[:5]:
        file.write_text(json.dumps([{**case, "expected": changed(case["expected"])}]))
        assert run(build, file).returncode == 1
