"""The plugin in the plugin registries of real TensorRT libraries: loaded, created, serialised, made again, and run.

Each version has a process of its own, in which `registry_driver.py` collects what these tests assert. The lean libraries hold
the registry and the runtime, and need no driver. The plugin is compiled once, with TensorRT 10.14's headers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

import plugin_library
import plugin_wheels
from paths import ROOT

HERE = ROOT / "tests" / "support"
VERSIONS = ("10.15.1.29", "10.16.1.11", "11.4.0.106")

pytestmark = pytest.mark.slow  # a build of its own, and 150 MB of wheels


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The plugin for the CPU, and the probe."""
    headers = plugin_wheels.tensorrt_headers()
    library = plugin_library.build(tensorrt_headers=headers)
    probe = tmp_path_factory.mktemp("probe") / "registry_probe.so"
    shim = plugin_library.SOURCES / "shim"  # its cuda_runtime_api.h: TensorRT's headers want one
    include = ["-isystem", str(headers), "-isystem", str(shim)]
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"]
    plugin_library.run("g++", *flags, *include, str(HERE / "registry_probe.cpp"), "-o", str(probe))
    return library, probe


@lru_cache
def driven(version: str, library: Path, probe: Path) -> dict[str, Any]:
    """What `registry_driver.py` reports for one version."""
    folders = [str(plugin_wheels.unpacked(f"tensorrt-lean-cu13-{part}=={version}")) for part in ("bindings", "libs")]
    command = [sys.executable, str(HERE / "registry_driver.py"), *folders, str(library), str(probe)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


@pytest.fixture(params=VERSIONS)
def report(request: pytest.FixtureRequest, compiled: tuple[Path, Path]) -> dict[str, Any]:
    return driven(request.param, *compiled)


def test_the_library_registers_the_creator_in_its_namespace(report: dict[str, Any]) -> None:
    assert report["handle"]
    assert (report["known_before"], report["known"]) == (False, True)
    assert not report["known_without_namespace"], "a creator without a namespace could take another library's nodes"


def test_attributes_that_make_no_sense_create_nothing(report: dict[str, Any]) -> None:
    assert report["senseless"] == {"top_k=0": False, "top_k=-1": False}
    assert not report["lost_attribute"], "top_k is required"


def test_the_attributes_are_what_an_engine_keeps(report: dict[str, Any]) -> None:
    assert report["fields"] == {"top_k": 2, "contrast": 1}
    assert report["fields_of_another"] == {"top_k": 3, "contrast": 0}


def test_a_plugin_made_again_from_its_fields_computes_the_mixture(report: dict[str, Any]) -> None:
    assert len(report["errors"]) == 6
    assert max(report["errors"].values()) <= 1, report["errors"]


def test_another_attribute_would_have_shown(report: dict[str, Any]) -> None:
    assert min(report["other_top_k"].values()) > 1, report["other_top_k"]


def test_networks_that_it_cannot_serve_are_refused(report: dict[str, Any]) -> None:
    assert report["top_k_beyond_the_experts"] == -1
    assert report["refuses_int8"]
    assert report["workspace"] > 0


def test_the_int4_plugin_multiplies_and_refuses_what_it_cannot(report: dict[str, Any]) -> None:
    found = report["group_matmul"]
    assert found["known"]
    assert found["code"] == 0
    assert found["error"] < 0.01
    assert found["refused"] == {"float": -1, "uint8 weights": -1, "groups of 16": -1, "odd outputs": -1}
