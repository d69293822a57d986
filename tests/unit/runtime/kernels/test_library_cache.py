"""The cache of compiled kernels runs nothing that another user, a full disk or another machine may have put there."""

from __future__ import annotations

import ctypes
import hashlib
import os
import pwd
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jakiro_runtime import kernels
from jakiro_runtime.format.files import cache_folder
from jakiro_runtime.kernels import library_cache
from jakiro_runtime.kernels.library_cache import KernelError, LibraryCache

# a compiler that takes no time: an empty library, and a line in a log for each call
COMPILER = """#!/bin/sh
echo compiled >> "{log}"
for last; do :; done
exec g++ -shared -fPIC -x c++ /dev/null -o "$last"
"""
Load = Callable[[], Path | None]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def load(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The library as a fresh process would load it, with a cache of its own."""
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(log=log))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "_cpu", lambda: "flags : avx2 fma f16c")
    open_library = ctypes.CDLL

    def open_afresh(path: str) -> ctypes.CDLL:
        """A process opens a path once: what is there later is opened by another name."""
        copy = tmp_path / f"copy-{time.monotonic_ns()}.so"
        shutil.copy(path, copy)
        return open_library(str(copy))

    monkeypatch.setattr(kernels.ctypes, "CDLL", open_afresh)
    return kernels.library.__wrapped__


def compilations(log: Path) -> int:
    return len(log.read_text().splitlines())


def test_folder_and_library_are_the_users_alone_whatever_the_umask(load: Load) -> None:
    before = os.umask(0)
    try:
        library = load()
    finally:
        os.umask(before)
    assert library is not None
    assert stat.S_IMODE(library.stat().st_mode) == stat.S_IMODE(library.parent.stat().st_mode) == 0o700


def test_an_intact_library_is_compiled_once(load: Load, log: Path) -> None:
    assert load() == load()
    assert compilations(log) == 1


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def turn_to_another_machine(path: Path) -> None:
    """e_machine of AArch64, with a digest that fits: as from a home folder that two machines share."""
    content = bytearray(path.read_bytes()[:-32])
    content[18:20] = (183).to_bytes(2, "little")
    path.write_bytes(bytes(content) + hashlib.sha256(content).digest())


def replace_by_a_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def open_to_others(path: Path) -> None:
    path.chmod(0o777)


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)


@pytest.mark.parametrize(
    "spoil", [truncate, empty, flip_a_bit, turn_to_another_machine, replace_by_a_link, open_to_others, give_away]
)
def test_a_library_that_is_not_intact_or_not_ours_is_made_again(
    load: Load, log: Path, spoil: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    library = load()
    assert library is not None
    good = library.read_bytes()
    spoil(library)
    assert load() == library
    assert not library.is_symlink()
    assert library.read_bytes() == good
    assert compilations(log) == 2
    assert not capfd.readouterr().err


@pytest.mark.parametrize("spoil", [replace_by_a_link, open_to_others, give_away])
def test_a_folder_that_others_may_write_is_not_used(
    load: Load, log: Path, tmp_path: Path, spoil: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache" / "jakiro" / "kernels"
    folder.mkdir(parents=True)
    spoil(folder)
    assert load() is None
    assert not log.exists()
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1
    assert str(folder) in warning


def test_a_group_that_may_write_the_folder_above_is_no_hindrance(load: Load, tmp_path: Path) -> None:
    """As umask 002 leaves it, where another part of the runtime made it first."""
    above = tmp_path / "cache" / "jakiro"
    above.mkdir(parents=True)
    above.chmod(0o775)
    assert load() is not None


def test_a_relative_cache_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert LibraryCache.of_user().folder == tmp_path / "home" / ".cache" / "jakiro" / "kernels"
    assert not (tmp_path / "cache").exists()


def test_an_empty_home_is_not_the_root_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache" / "jakiro"
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(KernelError, match="XDG_CACHE_HOME"):
        library_cache.LibraryCache.of_user()


def test_a_folder_that_nothing_is_loaded_from_costs_one_warning(
    load: Load, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As on a disk mounted noexec."""
    monkeypatch.setattr(kernels, "_load_error", lambda _: OSError("failed to map segment from shared object"))
    assert load() is None
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1
    assert "failed to map segment" in warning


def test_without_a_compiler_one_warning_says_what_to_install(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load() is None
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1
    assert "apt install g++" in warning


def test_a_compiler_that_fails_costs_one_warning(
    load: Load, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "false")
    assert load() is None
    warning = capfd.readouterr().err
    assert warning.count("\n") == 1
    assert "false failed with exit code 1" in warning
