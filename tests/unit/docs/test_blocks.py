"""README and docs do what they say: their commands and their Python are run, on a tiny engine where they name SmolLM2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from documents import ROOT, Failed, Reader, blocks

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "jetson.md"]  # every step there needs a Jetson
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@pytest.mark.parametrize("page", NAMES)
def test_what_a_page_says_works(page: str, reader: Reader) -> None:
    reader.read(ROOT / page)


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, page in zip(NAMES, PAGES, strict=True) if "<!-- slow" in page.read_text()])
def test_what_a_page_says_works_where_it_takes_long(page: str, reader: Reader) -> None:
    replace(reader, slow=True).read(ROOT / page)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```sh\njakiro-run --engine out/smollm2 --quickly\n```\n", "No such option"),
        ("```sh\njakiro-run --engine out/other --prompt x\n```\n", "no engine directory at out/other"),
        ("```sh\nmake everything\n```\n", "No rule to make target"),
        ("```sh\nfrobnicate\n```\n", "frobnicate is no command"),
        ("```python\nfrom jakiro_runtime import Enigma\n```\n", "cannot import name 'Enigma'"),
        ("<!-- not run: it is late -->\n```sh\nmake demo\n```\n", "no reason not to run a block"),
        ("Type\n\n    jakiro-run --engine out/smollm2\n", "commands in an indented block"),
    ],
)
def test_a_page_that_is_wrong_fails(text: str, message: str, reader: Reader, tmp_path: Path) -> None:
    """Controls."""
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(Failed, match=message):
        reader.read(page)


def test_blocks_are_found_with_what_is_said_of_them() -> None:
    page = """
```
output
```

<!-- not run: needs a GPU -->
```sh
make test-gpu
```
<!-- slow -->
```sh
make demo
```
<!-- file: x.py -->
```python
1
```
"""
    assert [(block.language, block.not_run, block.slow, block.file) for block in blocks(page)] == [
        ("", None, False, None),
        ("sh", "needs a GPU", False, None),
        ("sh", None, True, None),
        ("python", None, False, "x.py"),
    ]
