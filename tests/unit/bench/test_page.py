"""The HTML page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from benching import ID, bench


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href", "onload", "onerror"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_self_contained_and_escapes_what_comes_from_files(
    tiny_engine: Path, prompts_file: Path, tmp_path: Path
) -> None:
    html = tmp_path / "bench.html"
    result = bench(tiny_engine, prompts_file, "--html", html, "--cost")
    assert result.exit_code == 0, result.output
    text = html.read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert "script" not in page.tags
    assert ID in page.texts  # in the table, as text
    assert "<i>" in page.texts
    assert not re.search(r"url\(|@import|https?:", text)
    titles = "Speed-up by prompt, Acceptance by depth, Acceptance by rank, Cost of a target pass by rows, Time per round"
    for title in titles.split(", "):
        assert title in page.texts
    assert page.tags.count("svg") == 6
