"""An installed copy: programs in C and C++ are built against it, and give Python's tokens."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import native
from answers import run
from jakiro_runtime import Engine, Sampling
from paths import ROOT

PROMPT = [5, 6, 7, 9]


def done(*command: object, **environment: object) -> str:
    """What a command prints; its exit code is 0."""
    given = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.run([str(each) for each in command], env=given, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def prefix(build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix")
    done("cmake", "--install", build, "--prefix", folder)
    return folder


@pytest.fixture(scope="module")
def libraries(prefix: Path) -> Path:
    return next(prefix.rglob("libjakiro.so")).parent


def ids(text: str) -> list[int]:
    return [int(each) for each in text.split()]


def test_a_program_in_plain_c(prefix: Path, libraries: Path, tmp_path: Path, tiny_engine: Path, engine: Engine) -> None:
    source, program = ROOT / "examples/c_minimal/minimal.c", tmp_path / "minimal"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]
    done("cc", "-std=c99", *warnings, source, f"-I{prefix / 'include'}", f"-L{libraries}", "-ljakiro", "-o", program)
    where: dict[str, Any] = {"LD_LIBRARY_PATH": libraries, "ONNXRUNTIME_ROOT": native.ONNXRUNTIME}
    assert ids(done(program, tiny_engine, *PROMPT, **where)) == run(engine.session(), PROMPT, 20).tokens
    environment = {**os.environ, **{name: str(value) for name, value in where.items()}}
    failed = subprocess.run([program, tmp_path, "5"], env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "holds no engine.json" in failed.stderr


def test_a_program_in_cpp_by_find_package(prefix: Path, tmp_path: Path, tiny_engine: Path, engine: Engine) -> None:
    done("cmake", "-S", ROOT / "examples/cpp_sampled", "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}")
    done("cmake", "--build", tmp_path)
    found = done(tmp_path / "sampled", tiny_engine, *PROMPT, ONNXRUNTIME_ROOT=native.ONNXRUNTIME)
    assert ids(found) == run(engine.session(), PROMPT, 40, sampling=Sampling(temperature=0.8, seed=7)).tokens


def test_only_the_interface_is_visible(libraries: Path) -> None:
    listed = done("nm", "-D", "--defined-only", libraries / "libjakiro.so")
    ours = {line.split()[-1] for line in listed.splitlines() if " T " in line}
    assert "jakiro_engine_open" in ours
    assert all(name.startswith("jakiro_") for name in ours)


def test_pkg_config_has_its_file(libraries: Path) -> None:
    text = (libraries / "pkgconfig" / "jakiro.pc").read_text()
    assert "-ljakiro" in text
    assert "Version: 0.1.0" in text
