"""The worked examples of docs/extending: their files written, their changes made, their blocks run, in a copy of the sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from documents import ROOT, Failed, workspace, write_sources

pytestmark = pytest.mark.slow  # minutes: each page exports an engine
PAGES = sorted((ROOT / "docs/extending").glob("*.md"))


def read(pages: list[Path], folder: Path, engine: Path, target: Path, head: Path) -> dict[str, str | None]:
    """What failed of each page, by name; None for nothing."""
    sources = write_sources(pages, folder)
    clone = workspace(folder / "clone", engine)
    path = os.pathsep.join(map(str, (sources, sources / "runtime", ROOT / "tests/support")))
    command = [sys.executable, str(ROOT / "tests/support/documents.py"), str(sources), str(clone), str(target), str(head)]
    done = subprocess.run([*command, *map(str, pages)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return {Path(page).stem: found for page, found in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def failures(
    tmp_path_factory: pytest.TempPathFactory, tiny_engine: Path, tiny_target: Path, tiny_head: Path
) -> dict[str, str | None]:
    return read(PAGES, tmp_path_factory.mktemp("extending"), tiny_engine, tiny_target, tiny_head)


@pytest.mark.parametrize("page", [page.stem for page in PAGES])
def test_the_example_works_as_it_is_written(page: str, failures: dict[str, str | None]) -> None:
    assert failures[page] is None, failures[page]


def test_an_example_without_its_change_fails(tmp_path: Path, tiny_engine: Path, tiny_target: Path, tiny_head: Path) -> None:
    """A control: the backend's page without the line that names the backend."""
    page = tmp_path / "backend.md"
    text = (ROOT / "docs/extending/backend.md").read_text()
    page.write_text(text.replace('"tensorrt-rtx": "tensorrt", "copying": "copying"}', '"tensorrt-rtx": "tensorrt"}'))
    failed = read([page], tmp_path / "sources", tiny_engine, tiny_target, tiny_head)
    assert "There is no backend 'copying'" in str(failed["backend"])


def test_a_change_that_does_not_fit_the_code_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```diff\n--- a/jakiro_export/export.py\n+++ b/jakiro_export/export.py\n@@ -1 +1 @@\n-no line\n+a\n```\n")
    with pytest.raises(Failed, match="the change does not fit the code"):
        write_sources([page], tmp_path / "sources")
