"""Engines to build from, and a TensorRT-RTX to build with: the installed one, or the wheels from the package index."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

import plugin_wheels

RTX = "1.7.1.116"
RTX_INSTALLED = any(map(importlib.util.find_spec, ("tensorrt_rtx", "tensorrt_rtx_bindings")))


@pytest.fixture
def engine(half_engine: Path, tmp_path: Path) -> Path:
    """A copy of `half_engine` for one test."""
    return Path(shutil.copytree(half_engine, tmp_path / "engine"))


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """TensorRT-RTX on the path of this process and of those it starts: its wheels' folders, none where it is installed."""
    if RTX_INSTALLED:
        return []
    folders = [plugin_wheels.unpacked(f"tensorrt-rtx-cu13-{part}=={RTX}") for part in ("bindings", "libs")]
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, folders), *([before] if before else [])]))
    for folder in folders:
        monkeypatch.syspath_prepend(str(folder))
    return folders
