"""The C++ runtime, built once a test run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

import native
from plans import make_plan

Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def build(once: Once) -> Path:
    """The folder that the library was built in; skips with the reason where it cannot be."""
    if reason := native.missing():
        pytest.skip(reason)
    return once("cpp-build", native.build)


@pytest.fixture(scope="session")
def library(build: Path) -> native.Library:
    return native.Library(build / "libjakiro.so")


@pytest.fixture(scope="session")
def native_engine(library: native.Library, tiny_engine: Path) -> native.NativeEngine:
    """The tiny engine, opened by the C++ runtime."""
    return library.open(tiny_engine)


@pytest.fixture(scope="session")
def planned_engine(once: Once, tiny_engine: Path) -> Path:
    """The tiny engine with a measured plan: rounds verify as many nodes as are worth their rows."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_engine, folder)
        manifest = json.loads((folder / "engine.json").read_text())
        (folder / "engine.json").write_text(json.dumps({**manifest, "tree": asdict(make_plan())}))

    return once("planned-engine", make)


@pytest.fixture(scope="session")
def copied_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """`copied_engine(directory)`: a copy that a test may damage."""

    def copy(directory: Path) -> Path:
        return Path(shutil.copytree(directory, tmp_path_factory.mktemp("copy") / "engine"))

    return copy
