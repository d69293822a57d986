"""Runs the command and Python blocks of the documents, as a reader would type them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
from click.testing import CliRunner

from serving import start, stop

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"(?:^<!-- (?P<kind>not run|file|slow)(?:: (?P<about>[^\n]*?))? -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.M,
)
_INDENTED = re.compile(r"^    (?:jakiro-\w+|make|pip|python|cmake|sudo) .*$", re.MULTILINE)
# What Python blocks call the target
_MODEL = re.compile(r'"(?:smollm2-135m|HuggingFaceTB/[\w-]+)"')
# Why a block may stay unrun
_REASONS = ("needs a GPU", "needs a Jetson", "downloads ")
# What follows the commands here, so that they take seconds: the last value of an option counts
_SHORTER = {
    "jakiro-run": ["--max-new-tokens", "8"],
    "jakiro-bench": ["--limit", "1", "--max-new-tokens", "4", "--repeats", "1", "--warmup", "0", "--no-cost"],
}


class Block(NamedTuple):
    """A fenced block.

    not_run: the reason, where it says that it is not run
    file: the path that it is the content of
    slow: it takes more than some seconds
    """

    line: int
    language: str
    text: str
    not_run: str | None
    file: str | None
    slow: bool


class Failed(Exception):
    """A block that does not do what its page says."""


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        Failed: commands stand in an indented block, which would not be run, or a block is left out for a reason that is none
    """
    if found := _INDENTED.search(page):
        raise Failed(f"commands in an indented block: {found[0].strip()}; fence it with ```sh")
    made = []
    for each in _BLOCK.finditer(page):
        about = {each["kind"]: each["about"] or ""}
        line = page.count("\n", 0, each.start("text"))
        if (reason := about.get("not run")) is not None and not reason.startswith(_REASONS):
            raise Failed(f"line {line}: {reason!r} is no reason not to run a block; reasons begin with {', '.join(_REASONS)}")
        made.append(Block(line, each["language"], each["text"], about.get("not run"), about.get("file"), "slow" in about))
    return made


@dataclass
class Reader:
    """Types what pages say.

    folder: where everything happens; has what a clone of the repository has
    target, head: checkpoints in the place of those that a page names
    sources: where files go that a page says to write
    slow: run the slow blocks alone, instead of all others
    """

    folder: Path
    target: Path
    head: Path
    sources: Path = ROOT
    slow: bool = False
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def read(self, page: Path) -> None:
        """Run every block of a page, in order, in one Python namespace. Raises Failed."""
        names: dict[str, Any] = {"__name__": "__main__"}
        try:
            for block in blocks(page.read_text()):
                where = f"{page.name}, line {block.line}"
                if block.not_run is not None or block.slow != self.slow:
                    continue
                try:
                    with _working_in(self.folder):
                        self._run(block, where, names)
                except Exception as error:
                    raise Failed(f"{where}: {traceback.format_exc(limit=-3)}\n{block.text}") from error
        finally:
            for server in self.servers:
                stop(server)
            self.servers.clear()

    def _run(self, block: Block, where: str, names: dict[str, Any]) -> None:
        if block.file:
            place = self.sources / block.file
            if not place.exists() or place.read_text() != block.text:
                raise Failed(f"{block.file} has not been written")
        elif block.language == "python":
            source = _MODEL.sub(repr(str(self.target)), block.text)
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, where, "exec", dont_inherit=True), names)
        elif block.language in ("sh", "console"):
            for line in commands(block):
                self.type(line)

    def type(self, line: str) -> None:
        """Run one command line. Raises Failed where it ends with an error."""
        words = shlex.split(line, comments=True)
        text = "Hello\n"
        if words and words[0] == "echo" and "|" in words:
            text, words = " ".join(words[1 : words.index("|")]), words[words.index("|") + 1 :]
        if not words:
            return
        if words[-1] == "&":
            self._serve(words[:-1])
        elif words[0] == "make":
            self._make(words[1:])
        elif words[0] == "python":
            self._process([sys.executable, *words[1:]])
        elif words[0] in console_scripts():
            self._command(words[0], words[1:], text)
        else:
            raise Failed(f"{words[0]} is no command that is run here")

    def _command(self, name: str, arguments: Sequence[str], text: str) -> None:
        instead = {"-t": self.target, "--target": self.target, "-d": self.head, "--draft": self.head}
        given = list(arguments)
        for place, word in enumerate(arguments[:-1]):
            if name == "jakiro-export" and word in instead and not Path(arguments[place + 1]).exists():
                given[place + 1] = str(instead[word])
        result = CliRunner().invoke(console_scripts()[name], [*given, *_SHORTER.get(name, [])], input=text)
        if result.exit_code or (result.exception and not isinstance(result.exception, SystemExit)):
            raise Failed(f"{name} {' '.join(arguments)}: exit code {result.exit_code}: {result.output} {result.exception!r}")

    def _serve(self, words: Sequence[str]) -> None:
        """A server in the background, for the rest of the page; back when it listens."""
        port = int(words[words.index("--port") + 1])
        module = str(getattr(console_scripts()[words[0]].callback, "__module__", ""))
        try:
            self.servers.append(start([word for word in words[1:] if word not in ("--port", str(port))], port, module))
        except RuntimeError as error:
            raise Failed(str(error)) from error

    def _make(self, arguments: Sequence[str]) -> None:
        """A target: make knows it, and the Python programs that it starts run on the engine here."""
        found = subprocess.run(["make", "-n", *arguments, "BIN=", "ENGINE=out/smollm2"], capture_output=True, text=True, cwd=ROOT)
        if found.returncode:
            raise Failed(f"make {' '.join(arguments)}: {found.stderr}")
        for line in found.stdout.splitlines():
            if line.startswith("/python examples/"):
                self._process([sys.executable, *shlex.split(line)[1:], "--max-new-tokens", "4"])

    def _process(self, command: Sequence[str]) -> None:
        path = os.pathsep.join([str(self.sources), str(self.sources / "runtime")])
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
        if done.returncode:
            raise Failed(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}")


def commands(block: Block) -> Iterator[str]:
    """The command lines of a block; in a console's, those after a `$`."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "sh":
            yield line
        elif line.startswith("$ "):
            yield line[2:]


def tables() -> ModuleType:
    """docs/tables.py, which makes tables from the code."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def console_scripts() -> dict[str, click.Command]:
    """The project's commands by name."""
    found: dict[str, click.Command] = tables().commands()
    return found


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def workspace(folder: Path, engine: Path) -> Path:
    """A folder that looks like a clone in which `make demo` has run, with another engine."""
    (folder / "out").mkdir(parents=True)
    shutil.copytree(engine, folder / "out/smollm2")
    for name in ("docs", "examples", "plugins", "pyproject.toml", "tests"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def write_sources(pages: Sequence[Path], folder: Path) -> Path:
    """A copy of the packages with the files and changes of some pages. Raises Failed where a change does not fit."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("jakiro_export", "runtime"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for page in pages:
        for block in blocks(page.read_text()):
            if block.file:
                (folder / block.file).write_text(block.text)
            elif block.language == "diff":
                done = subprocess.run(["patch", "-p1", "--fuzz=0"], cwd=folder, input=block.text, capture_output=True, text=True)
                if done.returncode:
                    raise Failed(f"{page.name}, line {block.line}: the change does not fit the code: {done.stdout}{done.stderr}")
    return folder


def main(sources: str, folder: str, target: str, head: str, *pages: str) -> None:
    """Read some pages; prints, as JSON, what failed of each."""
    reader = Reader(Path(folder), Path(target), Path(head), Path(sources))
    failed: dict[str, str | None] = {}
    for page in pages:
        try:
            reader.read(Path(page))
            failed[page] = None
        except Failed as error:
            failed[page] = str(error)
    json.dump(failed, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
