"""Compiled libraries in the user's cache folder, which only the user can have written.

A library is code that this process will run, so folder and files must belong to the user, be writable by nobody else and be no
symbolic links. A stored file ends with the SHA-256 of what precedes it (loaders ignore what follows an ELF file's sections): one
that was cut or damaged is found before it is mapped, where touching a missing page would end the process.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from jakiro_runtime.format.files import cache_folder

_DIGEST_BYTES = 32


class KernelError(Exception):
    """Why kernels cannot be compiled, or must not be loaded: one sentence without a full stop."""


@dataclass(frozen=True)
class LibraryCache:
    """Libraries by file name in a private folder."""

    folder: Path

    @classmethod
    def of_user(cls) -> LibraryCache:
        """The user's cache, made if it is not there (mode 0700). Raises KernelError where it is not private, OSError."""
        try:
            folder = cache_folder() / "kernels"
        except RuntimeError as error:
            raise KernelError(str(error)) from None
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise KernelError(f"{folder} is not a folder but a link or a file; remove it")
        if problem := _foreign(found):
            raise KernelError(f"{folder} {problem}; it must be yours alone, as after: rm -r {folder}")
        return cls(folder)

    def find(self, name: str) -> Path | None:
        """A stored library that is intact; what is damaged or not the user's own is deleted. Raises OSError."""
        path = self.folder / name
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError:  # a link, or not readable
            path.unlink()
            return None
        with os.fdopen(file, "rb") as opened:
            found = os.fstat(file)
            ours = stat.S_ISREG(found.st_mode) and _foreign(found) is None
            content = opened.read() if ours else b""
        if ours and content[-_DIGEST_BYTES:] == hashlib.sha256(content[:-_DIGEST_BYTES]).digest():
            return path
        path.unlink()
        return None

    def store(self, made: Path, name: str) -> Path:
        """Move a file of this folder's disk into the cache; whole or not at all, also where two processes store at once."""
        content = made.read_bytes()
        with made.open("ab") as file:
            file.write(hashlib.sha256(content).digest())
        made.chmod(0o700)
        return made.replace(self.folder / name)


def _foreign(found: os.stat_result) -> str | None:
    """Why somebody else may have written a file or folder."""
    if found.st_uid != os.geteuid():
        return f"belongs to user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "is writable by others"
    return None
