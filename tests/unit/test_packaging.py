"""What pip finds for the devices and Pythons that the README names: wheels for all of it, found by pip's own resolver."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow  # asks the package index

MACHINES = {  # processor, the newest glibc that a wheel may ask for, Python, extras
    "JetPack 6": ("aarch64", 35, "3.10", ("cpu", "build", "grammar")),
    "JetPack 7": ("aarch64", 39, "3.12", ("cpu", "build", "grammar")),
    "a desktop of 2022": ("x86_64", 35, "3.10", ("cpu", "build", "rtx", "grammar", "export")),
}

DEVICES = ("JetPack 6", "JetPack 7")


def requirements(extras: tuple[str, ...]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]


def resolve(processor: str, glibc: int, python: str, wanted: list[str], folder: Path) -> tuple[dict[str, str], str]:
    """The version of every package that would be installed, by name; and what pip said, where it found no solution."""
    tags = [f"manylinux_2_{minor}_{processor}" for minor in range(glibc, 16, -1)] + [f"manylinux2014_{processor}"]
    report = folder / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
    command += ["--only-binary=:all:", "--target", str(folder / "unused"), "--python-version", python]
    done = subprocess.run(
        [*command, *(word for tag in tags for word in ("--platform", tag)), *wanted], capture_output=True, text=True
    )
    if "NewConnectionError" in done.stderr:
        pytest.skip("the package index cannot be reached")
    if done.returncode:
        return {}, done.stderr
    found = json.loads(report.read_text())["install"]
    return {each["metadata"]["name"].lower().replace("_", "-"): each["metadata"]["version"] for each in found}, ""


@pytest.mark.parametrize("machine", [*DEVICES, pytest.param("a desktop of 2022", marks=pytest.mark.exhaustive)])
def test_wheels_are_there_for(machine: str, tmp_path: Path) -> None:
    processor, glibc, python, extras = MACHINES[machine]
    wanted = requirements(extras)
    found, failure = resolve(processor, glibc, python, wanted, tmp_path)
    assert not failure, failure[-2000:]
    for each in map(Requirement, wanted):
        assert found[each.name.lower().replace("_", "-")] in each.specifier, each


def test_what_a_device_s_python_is_too_old_for_is_noticed(tmp_path: Path) -> None:
    """A control: ONNX Runtime 1.24 and newer have no wheel for JetPack 6's Python."""
    found, failure = resolve("aarch64", 35, "3.10", ["onnxruntime>=1.24"], tmp_path)
    assert not found
    assert "onnxruntime" in failure
