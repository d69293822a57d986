"""Integrity of an engine directory: every file by size and SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jakiro_runtime.errors import EngineError
from jakiro_runtime.format.files import cache_folder
from jakiro_runtime.format.manifest import EXPORT_AGAIN, NAME, FileRecord, Manifest

_BLOCK = 1 << 22

Progress = Callable[[str, int], None]
"""Called with a file's name and a count of bytes just read."""


def record(path: str | os.PathLike[str], progress: Progress = lambda name, count: None) -> FileRecord:
    """The size and SHA-256 of a file, for `Manifest.files`."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            progress(Path(path).name, len(block))
    return FileRecord(size, digest.hexdigest())


def check_integrity(
    manifest: Manifest,
    directory: str | os.PathLike[str],
    full: bool = False,
    only: Iterable[str] | None = None,
    progress: Progress = lambda name, count: None,
) -> None:
    """Compare every file of the directory with its size and SHA-256.

    A file that was found right before, and whose size, inode and times have not moved since, is not read again, so that only
    the first opening of an engine costs a pass over its weights. `full` reads everything. `only` names the files to check; all
    if None.

    Raises:
        EngineError: a file is missing, or is not the one that was exported
    """
    folder = Path(directory)
    seen = {} if full else _read_stamps()
    fresh: dict[str, list[Any]] = {}
    for graph in manifest.graphs.values():
        if graph not in manifest.files:
            raise EngineError(f"{folder / NAME} names the graph {graph} but does not list it; {EXPORT_AGAIN}.")
    for name in manifest.files if only is None else only:
        expected, path = manifest.files[name], folder / name
        try:
            status = path.stat()
        except FileNotFoundError:
            raise EngineError(f"The engine at {folder} has no file {name}; {EXPORT_AGAIN}.") from None
        except OSError as error:
            raise EngineError(f"{path} cannot be read ({error.strerror}); {EXPORT_AGAIN}.") from error
        if not stat.S_ISREG(status.st_mode):
            raise EngineError(f"{path} is no regular file; {EXPORT_AGAIN}.")
        if status.st_size != expected.bytes:
            raise EngineError(
                f"{path} has {status.st_size} bytes, but {expected.bytes} were exported: it was changed or cut; {EXPORT_AGAIN}."
            )
        key = str(path.resolve())
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, expected.sha256]
        if seen.get(key) == stamp:
            continue
        try:
            found = record(path, progress)
        except OSError as error:
            raise EngineError(f"{path} cannot be read ({error.strerror}); check the disk, or {EXPORT_AGAIN}.") from error
        if found.sha256 != expected.sha256:
            raise EngineError(
                f"{path} is not the file that was exported (sha256 {found.sha256[:12]}..., expected "
                f"{expected.sha256[:12]}...); {EXPORT_AGAIN}."
            )
        fresh[key] = stamp
    if fresh:
        _add_stamps(fresh)


def _stamp_path() -> Path:
    return cache_folder() / "verified.json"


def _read_stamps() -> dict[str, Any]:
    try:
        stamps = json.loads(_stamp_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _add_stamps(fresh: dict[str, list[Any]]) -> None:
    """Remember files found right. A cache: where it cannot be written, the next opening reads the files again."""
    try:
        path = _stamp_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        stamps = {key: stamp for key, stamp in _read_stamps().items() if os.path.exists(key)}
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**stamps, **fresh}), encoding="utf-8")
        os.replace(temporary, path)
    except (OSError, RuntimeError):
        pass
