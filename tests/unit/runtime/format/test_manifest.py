"""engine.json as somebody else may have written it: read field by field, and what is wrong is told by its name."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from answers import run
from jakiro_runtime import Engine, EngineError
from jakiro_runtime.format.integrity import check_integrity
from jakiro_runtime.format.manifest import Manifest
from plans import make_plan

WRONG = (None, True, -1, 1 << 63, 0.5, float("nan"), "words", [], {}, [None], {"a": None}, "../../etc/passwd")
FREE = ("versions", "source", "checks", "extra", "considered", "measured", "opset")  # anything may stand under these


@pytest.fixture(scope="module")
def data(tiny_engine: Path) -> dict[str, Any]:
    """A whole engine.json, with a plan."""
    manifest = Manifest.read(tiny_engine)
    manifest.tree = make_plan()
    return manifest.to_dict()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in entries:
        if key not in FREE:
            yield from places(each, (*path, key))


def changed(data: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    found = copy.deepcopy(data)
    owner = found
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    return found


def test_what_was_written_is_read(data: dict[str, Any]) -> None:
    assert Manifest.from_dict(json.loads(json.dumps(data))).to_dict() == data


def test_unknown_keys_survive(data: dict[str, Any]) -> None:
    more = {**data, "later": 1, "model": {**data["model"], "colour": "grey"}, "tree": {**data["tree"], "age": [3]}}
    assert Manifest.from_dict(more).to_dict() == more


def test_no_value_in_a_wrong_place_is_a_traceback(data: dict[str, Any]) -> None:
    """Each is refused in a sentence, or is a value that fits there."""
    refused = []
    for path in places(data):
        for value in WRONG:
            try:
                Manifest.from_dict(changed(data, path, value))
            except EngineError as error:
                refused.append(str(error))
    assert len(refused) > 1000
    assert all("engine.json" in sentence for sentence in refused)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("model", "vocab_size"), "many", "the field model.vocab_size is 'many'; a whole number of 0 or more was expected"),
        (("model", "num_layers"), 0, "the field model.num_layers is 0; 1 to 4096 was expected"),
        (("model", "eos_token_ids"), [7, 1 << 40], "the field model.eos_token_ids"),
        (("draft", "nodes"), 1 << 63, "the field draft.nodes is 9223372036854775808; 1 to 16384 was expected"),
        (("draft", "depth"), True, "the field draft.depth is True"),
        (("files", "target.onnx"), 3, "the field files.target.onnx is 3; an object was expected"),
        (("graphs", "target"), "../other/target.onnx", "the file '../other/target.onnx' lies outside the directory"),
        (("graphs", "draft"), "/dev/zero", "the file '/dev/zero' lies outside the directory"),
        (("tree", "acceptance"), [0.5], "tree.log_probs and tree.acceptance do not fit together"),
        (("tree", "draft_ms"), float("inf"), "the field tree.draft_ms is inf; a number was expected"),
        (("equality",), "mostly", "the field equality is 'mostly'"),
    ],
)
def test_the_sentence_names_the_field(data: dict[str, Any], path: tuple[str, ...], value: Any, sentence: str) -> None:
    with pytest.raises(EngineError) as told:
        Manifest.from_dict(changed(data, path, value))
    assert sentence in str(told.value)
    assert "export it again" in str(told.value)


@pytest.mark.parametrize("part", ["model", "draft", "files", "graphs", "precision"])
def test_a_missing_part_is_named(data: dict[str, Any], part: str) -> None:
    with pytest.raises(EngineError, match=f"the field {part} is missing"):
        Manifest.from_dict({key: value for key, value in data.items() if key != part})


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "nothing"])
@pytest.mark.parametrize("name", ["engine.json", "draft.onnx", "tokenizer.json"])
def test_what_is_no_file_is_refused_at_once(tiny_engine: Path, tmp_path: Path, name: str, kind: str) -> None:
    """A device or a pipe would be read for ever."""
    copied = Path(shutil.copytree(tiny_engine, tmp_path / "engine"))
    file = copied / name
    file.unlink()
    if kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    with pytest.raises(EngineError):
        Engine.open(copied)


def test_an_engine_of_links_opens(tiny_engine: Path, engine: Engine, tmp_path: Path) -> None:
    """As the hub's cache keeps one: every file a link to a blob of another name."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, file in enumerate(sorted(tiny_engine.iterdir())):
        shutil.copy(file, tmp_path / "blobs" / str(number))
        (tmp_path / "snapshot" / file.name).symlink_to(Path("..") / "blobs" / str(number))
    linked = Engine.open(tmp_path / "snapshot")
    assert run(linked.session(), [5, 6, 7], 9).tokens == run(engine.session(), [5, 6, 7], 9).tokens


def test_a_changed_file_is_told_and_an_unchanged_one_is_not_read_twice(tiny_engine: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny_engine, tmp_path / "engine"))
    manifest, read = Manifest.read(copied), []
    check_integrity(manifest, copied, progress=lambda name, _: read.append(name))
    assert set(read) == {Path(name).name for name in manifest.files}
    read.clear()
    check_integrity(manifest, copied, progress=lambda name, _: read.append(name))
    assert not read
    with (copied / "draft.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    with pytest.raises(EngineError, match=r"draft\.onnx is not the file that was exported"):
        check_integrity(manifest, copied)


def test_a_plan_is_written_as_it_was_measured(data: dict[str, Any]) -> None:
    assert data["tree"] == asdict(make_plan())
