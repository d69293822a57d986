"""The engine directory appears whole: it is written under another name next to its place, and takes it when it is complete.

A directory that is there already changes places with the new one in one step where the system can do that (Linux). Elsewhere it
is moved away first; a process that is killed between the two moves leaves it aside, and the next export moves it back.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jakiro_export.errors import ExportError, UsageError

_MARK = "engine.json"  # what makes a directory an engine
_RESERVE = 64 * 2**20  # bytes that are kept free besides the weights
_EXCHANGE, _AT_FDCWD = 2, -100  # renameat2's RENAME_EXCHANGE; paths are absolute


def destination(out: Path) -> Path:
    """Where a directory that is to appear at `out` is written, links followed.

    Raises:
        UsageError: there is something that a directory cannot or must not replace
    """
    try:
        place = out.resolve()
        if place.is_symlink():  # since Python 3.13 a loop of links is left as it is
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        there = place.exists()
        if there and not place.is_dir():
            raise UsageError(f"--out {out} is a file; a folder to write is expected.")
        if there and any(place.iterdir()) and not (place / _MARK).is_file():
            raise UsageError(f"--out {out} exists and is not an engine directory; give a new folder or empty it first.")
        above = next((each for each in place.parents if each.exists()), place)
        here = Path.cwd()
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise UsageError(f"--out {out} cannot be used ({error}); give a new folder.") from error
    if os.path.ismount(place):
        raise UsageError(f"--out {out} is a mount point, which no directory can replace; give a folder inside it.")
    if place == here or place in here.parents:
        raise UsageError(f"--out {out} is the folder you are in, or above it, and would be replaced; give a folder below it.")
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out} cannot be written: {above} is not a folder in which you may write; give another place.")
    return place


def check_space(place: Path, size: int) -> None:
    """Raise ExportError where fewer than `size` bytes and a reserve are free."""
    free = shutil.disk_usage(next(each for each in place.parents if each.exists())).free
    if free < size + _RESERVE:
        raise ExportError(f"Writing {size / 1e9:.2f} GB to {place} needs more than the {free / 1e9:.2f} GB that are free.")


@contextmanager
def written_whole(place: Path) -> Iterator[Path]:
    """A new directory that takes `place` when the block ends, or goes without a trace when it fails.

    What processes that are gone left of earlier directories at `place` is moved back or removed.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    _tidy(place)
    partial, lock = _new_directory(place)
    try:
        yield partial
        if place.exists():
            _replace(partial, place)
        else:
            partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _new_directory(place: Path) -> tuple[Path, int]:
    """A directory that is locked while this process lives, and its lock."""
    while True:
        path = _sibling(place, "partial")
        path.mkdir()
        lock = _lock(path)
        if path.exists():  # another process may have taken it for abandoned before it was locked
            return path, lock
        os.close(lock)


def _sibling(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{kind}-{secrets.token_hex(4)}")


def _lock(path: Path, flags: int = 0) -> int:
    """Lock a directory while the descriptor that is returned is open. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _tidy(place: Path) -> None:
    """Move back or remove the directories next to `place` whose writers are gone."""
    for kind in ("old", "partial"):
        for path in sorted(place.parent.glob(f".{_literal(place.name)}.{kind}-*")):
            try:
                lock = _lock(path, fcntl.LOCK_NB)
            except OSError:
                continue  # its writer lives, or it is none of ours
            try:
                if kind == "old" and not place.exists() and (path / _MARK).is_file():
                    path.rename(place)
                else:
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _literal(name: str) -> str:
    return "".join(f"[{each}]" if each in "*?[" else each for each in name)


def _replace(new: Path, place: Path) -> None:
    """Put `new` in the place of a directory, and remove that one."""
    if _exchange(new, place):
        shutil.rmtree(new, ignore_errors=True)
        return
    old, lock = _sibling(place, "old"), _lock(place)
    try:
        place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    except OSError:
        if not place.exists():
            with suppress(OSError):
                old.rename(place)
        raise
    finally:
        os.close(lock)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system or its file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
