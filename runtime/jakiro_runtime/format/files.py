"""Small files that somebody else may have written, read with a bound on their size."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path


def read_text(path: Path, most: int) -> str:
    """The text of a regular UTF-8 file of at most `most` bytes.

    Raises:
        FileNotFoundError: there is none
        OSError: it cannot be read, is no regular file (a device or a pipe would never end), or is larger
        UnicodeDecodeError: it is not UTF-8
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no regular file")
    if status.st_size > most:
        raise OSError(f"{path} has {status.st_size} bytes, more than the {most} that are read")
    return path.read_text(encoding="utf-8-sig")


def cache_folder() -> Path:
    """The user's cache of this project: in XDG_CACHE_HOME where that is absolute, as its specification says, else in ~/.cache.

    Raises:
        RuntimeError: the system knows no home folder for this user
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "jakiro"
    home = os.environ.get("HOME", "")
    if not os.path.isabs(home):  # an empty HOME is not the root folder
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            raise RuntimeError("this user has no home folder; name a cache folder in XDG_CACHE_HOME") from None
    return Path(home) / ".cache" / "jakiro"
