"""Tables of the documents equal the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import documents
from documents import ROOT
from jakiro_runtime import contract
from jakiro_runtime.format.manifest import Draft, FileRecord, Manifest, Model
from jakiro_runtime.format.tree_plan import TreePlan

TABLES = documents.tables()
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMES = ["README.md", "CONTRIBUTING.md", *(page.relative_to(ROOT).as_posix() for page in PAGES)]


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading or a comment, without its head."""
    text = (ROOT / page).read_text().split(heading, 1)[1]
    lines = re.search(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    assert lines is not None
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[0].splitlines()[2:]
    ]


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_tables_from_the_code_are_up_to_date(page: str) -> None:
    text = (ROOT / page).read_text()
    assert TABLES.filled(text) == text, "run python docs/tables.py"


@pytest.mark.parametrize("name", ["target", "draft"])
def test_the_contract_page_has_every_tensor(name: str) -> None:
    """Read again here, by hand: sizes that differ from each other, so that none can stand for another."""
    sizes = {"layers": 3, "kv_heads": 5, "head_dim": 7, "hidden": 11, "vocab": 13, "nodes": 17}
    wanted = (
        ("layers", "kv_heads", "head_dim", "hidden", "vocab") if name == "target" else ("kv_heads", "head_dim", "hidden", "nodes")
    )
    graph = getattr(contract, name)(**{each: sizes[each] for each in wanted})
    for part in ("inputs", "outputs"):
        found = []
        for tensor, shape, kind, meaning in rows("docs/graph-contract.md", f"<!-- table: {name}-{part} -->"):
            dims = tuple(sizes.get(dim, dim) for dim in shape.strip("[]").split(", "))
            layers = range(sizes["layers"]) if ".N" in tensor else [0]
            found += [
                contract.TensorSpec(
                    tensor.strip("`").replace(".N", f".{n}"), dims, kind, meaning.replace("layer N", f"layer {n}")
                )
                for n in layers
            ]
        assert found == list(getattr(graph, part))


def test_a_tensor_that_the_contract_lacks_is_noticed() -> None:
    """A control."""
    text = (ROOT / "docs/graph-contract.md").read_text()
    assert TABLES.filled(text.replace("| `last_row` | [batch] |", "| `last_row` | [batch, 1] |")) == text


@pytest.mark.parametrize("record", [Manifest, Model, Draft, FileRecord, TreePlan])
def test_the_engine_directory_page_has_every_field(record: Any) -> None:
    expected = []
    for field in dataclasses.fields(record):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        expected.append([f"`{field.name}`", str(field.type), "" if default is dataclasses.MISSING else repr(default)])
    found = rows("docs/engine-directory.md", f"### {record.__name__}\n")
    assert [row[:3] for row in found] == expected
    assert all(row[3] for row in found)


def test_the_readme_has_every_extra() -> None:
    extras = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    assert {row[0].strip("`") for row in rows("README.md", "## Install")} == set(
        re.findall(r"^([a-z0-9]+) = \[", extras, re.MULTILINE)
    )


def test_the_kernels_page_has_every_environment_variable() -> None:
    read = {
        name
        for file in (ROOT / "runtime").rglob("*.py")
        for name in re.findall(r'os\.environ(?:\.get\(|\[)"(\w+)"', file.read_text())
    }
    assert {row[0].strip("`") for row in rows("docs/kernels.md", "## Compilation and cache")} == read


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in link]


@pytest.mark.parametrize("page", NAMES)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for link in links(file):
        name, _, anchor = link.partition("#")
        place = file.parent / name if name else file
        assert place.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("page", [name for name in NAMES if not name.endswith("jetson.md")])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    written = set(re.findall(r"<!-- file: (.*?) -->", (ROOT / page).read_text()))
    bases = [
        ROOT,
        ROOT / "runtime/jakiro_runtime",
        ROOT / "jakiro_export",
        ROOT / "jakiro_export/ops",
        ROOT / "runtime/jakiro_runtime/kernels",
    ]
    for name, symbol in re.findall(r"`([\w./-]+(?:\.(?:py|cpp|h|md|jsonl|txt|toml)|/))(?:: ([\w.]+))?`", text):
        if "/" in name and name not in written and not name.startswith(("out/", "tensorrt/", "jakiro/")):
            found = [base / name for base in bases if (base / name).exists()]
            assert found, name
            if symbol:
                assert re.search(rf"(?:def|class) {symbol.rpartition('.')[2]}\b", found[0].read_text()), (name, symbol)
