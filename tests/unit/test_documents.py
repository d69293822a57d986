"""The commands in the documents exist, with the options they are shown with."""

from __future__ import annotations

import re

import click
import pytest

import jakiro_bench.cli
import jakiro_export.cli.build
import jakiro_export.cli.export
import jakiro_export.cli.inspect
import jakiro_export.training.cli
import jakiro_export.training.compare
import jakiro_runtime.cli
from paths import ROOT

COMMANDS: dict[str, click.Command] = {
    "jakiro-build": jakiro_export.cli.build.main,
    "jakiro-export": jakiro_export.cli.export.main,
    "jakiro-inspect": jakiro_export.cli.inspect.main,
    "jakiro-bench": jakiro_bench.cli.main,
    "jakiro-run": jakiro_runtime.cli.main,
    "jakiro-train": jakiro_export.training.cli.main,
    "jakiro_export.training.compare": jakiro_export.training.compare.main,
}
PAGES = [file.relative_to(ROOT).as_posix() for file in (ROOT / "examples").rglob("*.md")]
DOCUMENTS = ["README.md", "docs/jetson.md", "docs/performance.md", "plugins/README.md", "CONTRIBUTING.md", *sorted(PAGES)]


def wrong(text: str) -> list[str]:
    """Options and make targets in a document that do not exist."""
    found = []
    for name, command in COMMANDS.items():
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        for line in re.findall(rf"{name} ([^`\n#&]*)", text):
            found += [f"{name} {option}" for option in re.findall(r"(?<![\w-])--[a-z-]+", line) if option not in options]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return found + [
        f"make {target}" for target in re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE) if target not in targets
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_says_to_type_exists(document: str) -> None:
    assert wrong((ROOT / document).read_text()) == []


def test_what_does_not_exist_is_found() -> None:
    assert wrong("    jakiro-run --engine x --backend y --fast\n    make everything\n") == [
        "jakiro-run --fast",
        "make everything",
    ]
