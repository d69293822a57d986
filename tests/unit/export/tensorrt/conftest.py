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
def rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX on the path of this process and of those it starts."""
    if RTX_INSTALLED:
        return
    folders = [str(plugin_wheels.unpacked(f"tensorrt-rtx-cu13-{part}=={RTX}")) for part in ("bindings", "libs")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
