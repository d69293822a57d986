"""A reader of the documents, in a folder that looks like a clone of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from documents import Reader, workspace


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory, tiny_engine: Path, tiny_target: Path, tiny_head: Path) -> Reader:
    return Reader(workspace(tmp_path_factory.mktemp("reader") / "clone", tiny_engine), tiny_target, tiny_head)
