"""The engine directory appears whole: kills, links and leftovers leave the old one or the new one, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jakiro_export.artifact import directory
from jakiro_export.artifact.directory import check_space, destination, written_whole
from jakiro_export.errors import ExportError, UsageError


def write_engine(place: Path, content: str) -> None:
    with written_whole(place) as folder:
        (folder / "engine.json").write_text(content)


def content(place: Path) -> str:
    return (place / "engine.json").read_text()


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system call that lets two directories change places, and without it."""
    if not request.param:
        monkeypatch.setattr(directory, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("system")
def test_a_directory_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    place = tmp_path / "new" / "engine"
    for text in ("one", "two"):
        write_engine(place, text)
        assert content(place) == text
        assert list(place.parent.iterdir()) == [place]


@pytest.mark.usefixtures("system")
def test_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    write_engine(tmp_path / "engine", "old")
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "engine") as folder:
        (folder / "engine.json").write_text("half")
        raise KeyboardInterrupt
    assert content(tmp_path / "engine") == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "engine"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from jakiro_export.artifact import directory
place, where = Path(sys.argv[1]), sys.argv[2]
directory._exchange = lambda one, other: False
rename = Path.rename
def killed(self, target):
    if where == "before" or (where == "between" and self != place):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = killed
with directory.written_whole(place) as folder:
    (folder / "engine.json").write_text("new")
    if where == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("where", ["writing", "before", "between"])
def test_what_a_killed_process_leaves_is_put_right_by_the_next(tmp_path: Path, where: str) -> None:
    place = tmp_path / "engine"
    write_engine(place, "old")
    done = subprocess.run([sys.executable, "-c", _KILLED, str(place), where])
    assert done.returncode == -signal.SIGKILL
    assert place.exists() == (where != "between")
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(RuntimeError), written_whole(place):
        assert content(place) == "old"  # moved back before anything is written
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [place]
    write_engine(place, "newer")
    assert content(place) == "newer"


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "engine"
    with written_whole(place) as first:
        (first / "engine.json").write_text("first")
        write_engine(place, "second")  # the same process, the same place
        assert first.is_dir()
    assert content(place) == "first"
    assert list(tmp_path.iterdir()) == [place]


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "engine", tmp_path / "engine"
    link.symlink_to(real)  # dangling at first
    for text in ("one", "two"):
        write_engine(destination(link), text)
        assert link.is_symlink()
        assert content(real) == text
    assert list(real.parent.iterdir()) == [real]


def test_what_cannot_be_replaced_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        "file": "is a file",
        "file/engine": "not a folder|cannot be used",
        "loop": "cannot be used",
        "full": "not an engine directory",
        "pipe": "is a file",
    }.items():
        with pytest.raises(UsageError, match=words):
            destination(tmp_path / name)
    write_engine(tmp_path / "here", "x")
    monkeypatch.chdir(tmp_path / "here")
    for here in (Path("."), tmp_path / "here", Path("..") / "here"):
        with pytest.raises(UsageError, match="the folder you are in"):
            destination(here)
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "mounted")
    with pytest.raises(UsageError, match="mount point"):
        destination(tmp_path / "mounted")
    assert destination(tmp_path / "new" / "engine") == tmp_path / "new" / "engine"


def test_too_little_room_is_found_before_writing(tmp_path: Path) -> None:
    check_space(tmp_path / "a" / "b", 1)
    with pytest.raises(ExportError, match="free"):
        check_space(tmp_path / "a" / "b", 2**62)
