"""The commands in the documents exist, with the options they are shown with."""

from __future__ import annotations

import re

import click
import pytest

import documents
import jakiro_export.training.compare
from paths import ROOT

COMMANDS: dict[str, click.Command] = {
    **documents.console_scripts(),
    "jakiro_export.training.compare": jakiro_export.training.compare.main,
}
FOLDERS = ("docs", "examples", "plugins")
DOCUMENTS = [
    page.relative_to(ROOT) for page in (*ROOT.glob("*.md"), *(page for name in FOLDERS for page in (ROOT / name).rglob("*.md")))
]


def wrong(text: str) -> list[str]:
    """Options and make targets in a document that do not exist."""
    found, text = [], text.replace("\\\n", " ")
    for name, command in COMMANDS.items():
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        for line in re.findall(rf"{name} ([^`\n#&]*)", text):
            found += [f"{name} {option}" for option in re.findall(r"(?<![\w-])--[a-z-]+", line) if option not in options]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return found + [
        f"make {target}" for target in re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE) if target not in targets
    ]


@pytest.mark.parametrize("document", sorted(map(str, DOCUMENTS)))
def test_what_a_document_says_to_type_exists(document: str) -> None:
    assert wrong((ROOT / document).read_text()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    options = [each for each in COMMANDS[name].params if isinstance(each, click.Option)]
    assert [each.name for each in options if not each.help] == []


def test_what_does_not_exist_is_found() -> None:
    assert wrong("    jakiro-run --engine x --backend y --fast\n    make everything\n") == [
        "jakiro-run --fast",
        "make everything",
    ]
