"""jakiro-run on mutated files of an engine directory, with right checksums: a sentence or an answer, never a traceback or a hang."""
# ruff: noqa: E501

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from jakiro_runtime import Engine
from jakiro_runtime.cli import main
from jakiro_runtime.errors import UserError
from jakiro_runtime.format.integrity import record

FILES = ("engine.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**30, 0.5, -1e308, float("nan"), float("inf"), "", "x", "\ud800", "../x", "a" * 5000,
    [], [[]], {}, {"a": 1}, [1, "2", None], "{{ messages }}", "<|end|>", {"type": "Sequence"}, {"type": "ByteFallback"}, {"content": "x"},
]  # fmt: skip
FRAGMENTS = [
    "{{", "}}", "{%", "%}", "{% for a in range(9999) %}", "{% endfor %}", "{% if x %}", "{% endif %}", "messages", "[0]", "['content']",
    "|tojson", "|join(3)", ".x.y", "*", "** 99", "~", "+", "'", "(", ")", "{#", "{% set x = ", "loop.index", "namespace(x=1)", "raise_exception(1)",
    "{% macro f() %}", "{% endmacro %}", "{% generation %}", "{% endgeneration %}", "range(99999)", "none", "\ud800", "\x00", "|sort", "|int",
]  # fmt: skip


class Hang(BaseException):
    """One case took longer than any should."""


@pytest.fixture
def watchdog() -> Iterator[Callable[[int], None]]:
    def bite(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, bite)
    yield signal.alarm
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value, without the thousands of a vocabulary."""
    found, waiting = [], [data]
    while waiting:
        value = waiting.pop()
        items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])[:40]
        found += [(value, key) for key, _ in items]
        waiting += [each for _, each in items]
    return found


def mutate_json(text: str, choice: random.Random) -> str:
    data = json.loads(text)
    for _ in range(choice.randint(1, 3)):
        container, key = choice.choice(places(data))
        action = choice.random()
        if action < 0.2:
            container.pop(key)
            if not places(data):
                break
        elif action < 0.3 and isinstance(container[key], str | list):
            container[key] = container[key] * choice.choice([2, 1000])
        elif action < 0.4 and isinstance(container[key], int | float):
            container[key] = container[key] + choice.choice([-1, 1, 1000])
        else:
            container[key] = copy.deepcopy(choice.choice(VALUES))  # a copy: it may be changed, or put into itself
    return json.dumps(data)


def mutate_text(text: str, choice: random.Random) -> str:
    for _ in range(choice.randint(1, 4)):
        start = choice.randrange(len(text) + 1)
        stop = min(len(text), start + choice.choice([0, 0, 1, 5, 40]))
        text = text[:start] + choice.choice(FRAGMENTS) + text[stop:]
    return text


def mutated(name: str, text: str, choice: random.Random) -> bytes:
    if name.endswith(".json") and choice.random() < 0.85:
        text = mutate_json(text, choice)
    elif name.endswith(".json"):
        text = text[: choice.randrange(len(text))]
    else:
        text = mutate_text(text, choice)
    data = text.encode(errors="surrogatepass")
    if choice.random() < 0.1:
        place = choice.randrange(len(data) + 1)
        data = data[:place] + choice.choice([b"\xff", b"\x00", b"\xef\xbb\xbf", b"\n" * 9999]) + data[place:]
    return data


def copy_of(engine: Path, folder: Path) -> Path:
    """The engine in links, but for the small files."""
    folder.mkdir()
    for file in engine.iterdir():
        if file.name in FILES:
            shutil.copy(file, folder)
        else:
            os.link(file, folder / file.name)
    return folder


def put(folder: Path, name: str, data: bytes) -> None:
    """A file with its right checksum."""
    (folder / name).write_bytes(data)
    if name == "engine.json":
        return
    manifest = json.loads((folder / "engine.json").read_text())
    found = record(folder / name)
    manifest["files"][name] = {"bytes": found.bytes, "sha256": found.sha256}
    (folder / "engine.json").write_text(json.dumps(manifest))


def check_runs(engine: Path, folder: Path, name: str, seeds: range, alarm: Callable[[int], None]) -> None:
    copy = copy_of(engine, folder / "copy")
    original, manifest = (copy / name).read_text(), (copy / "engine.json").read_bytes()
    options = ["-e", str(copy), "-p", "a<|end|>é", "-n", "3", "--threads", "1"]
    for seed in seeds:
        choice = random.Random(f"{name} {seed}")
        (copy / "engine.json").write_bytes(manifest)
        put(copy, name, mutated(name, original, choice))
        more = choice.choice(
            [[], ["--raw"], ["--temperature", "1"], ["--stop", "x"], ["--use-generation-config"], ["--regex", "a+"]]
        )
        alarm(30)
        done = CliRunner().invoke(main, [*options, *more])
        alarm(0)
        said = (seed, more, done.output[-300:], done.exception)
        assert done.exit_code in (0, 1, 2), said
        assert done.exception is None or isinstance(done.exception, SystemExit), said
        assert "our fault" not in done.output, said
        assert done.exit_code == 0 or "Error" in done.output, said


@pytest.fixture
def graphs_once(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """The graphs of the whole engine, so that a case does not spend its time on opening them."""
    from jakiro_runtime.backends import LoadedGraphs

    loaded = LoadedGraphs(engine.bundle.target, engine.bundle.draft, True)
    monkeypatch.setattr("jakiro_runtime.bundle.open_graphs", lambda *_: loaded)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_gets_a_sentence(
    tiny_engine: Path, tmp_path: Path, name: str, watchdog: Callable[[int], None], graphs_once: None
) -> None:
    check_runs(tiny_engine, tmp_path, name, range(40), watchdog)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FILES)
def test_many_changed_files_get_a_sentence(tiny_engine: Path, tmp_path: Path, name: str, watchdog: Callable[[int], None]) -> None:
    check_runs(tiny_engine, tmp_path, name, range(1000, 2000), watchdog)


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_changed_session_gets_a_sentence(engine: Engine, tmp_path: Path, count: int, watchdog: Callable[[int], None]) -> None:
    session = engine.session()
    list(session.generate([5, 6, 7, 8], 6))
    session.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    with np.load(tmp_path / "whole.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    for seed in range(count):
        choice = random.Random(seed)
        file = tmp_path / "changed.npz"
        if seed % 2:
            data = bytearray(whole)
            for _ in range(choice.randint(1, 8)):
                data[choice.randrange(len(data))] = choice.randrange(256)
            file.write_bytes(data[: choice.choice([len(data), choice.randrange(len(data))])])
        else:
            changed = dict(arrays)
            name = choice.choice(list(changed))
            changed[name] = choice.choice([
                np.zeros(0), np.array(7), np.array("x"), changed[name][..., None], changed[name].astype(np.float16, casting="unsafe")
                if changed[name].dtype.kind in "if" else np.zeros(3), changed[name][:1] if changed[name].ndim else np.zeros((2, 2)),
                np.full((3, 1, 2, 2, 2), np.nan), -np.ones(5, np.int64), np.full(9, 2**62),
            ])  # fmt: skip
            np.savez(file, **changed)
        watchdog(30)
        with contextlib.suppress(UserError):
            restored = engine.restore(file)
            list(restored.generate([*restored.tokens, 9], 2))
        watchdog(0)
