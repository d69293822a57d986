"""Fixtures that several folders of tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from jakiro_export.quiet import quiet_libraries

quiet_libraries()

import hypothesis  # noqa: E402

import tiny  # noqa: E402

hypothesis.settings.register_profile(
    "here", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
)
hypothesis.settings.load_profile("here")


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in transformers' format."""
    return tiny.make_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="session")
def tiny_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random head in the published format that fits `tiny_target`."""
    return tiny.make_head(tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="session")
def tiny_engine(tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_head: Path) -> Path:
    """An engine directory of the two, exported and verified as a user would, bitwise, 12 nodes."""
    return tiny.make_engine(tmp_path_factory.mktemp("engine") / "tiny", tiny_target, tiny_head)


@pytest.fixture(scope="session")
def half_engine(tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_head: Path) -> Path:
    """The tiny engine in fp16. For GPUs, and read only: tests that build from it copy it."""
    out = tmp_path_factory.mktemp("half") / "engine"
    return tiny.make_engine(out, tiny_target, tiny_head, precision="fp16", bitwise=False, verify=False)
