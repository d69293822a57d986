"""Standard streams of a command: closed ones, terminals that lack characters, and output that holds answers alone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from jakiro_runtime.errors import UsageError


def open_closed_streams() -> None:
    """Give closed standard streams somewhere to go: else the next file that is opened takes their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            if number == 1:
                _CLOSED.append(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


_CLOSED: list[int] = []


@contextmanager
def answer_stream() -> Iterator[IO[str]]:
    """Standard output for answers alone: while entered, what libraries print there goes to standard error.

    Characters that the terminal lacks become question marks.

    Raises:
        UsageError: standard output is closed
    """
    if _CLOSED:
        raise UsageError("Standard output is closed; an answer needs somewhere to go, such as a file or /dev/null.")
    try:
        ours = sys.stdout.fileno() == 1
    except (OSError, ValueError, AttributeError):  # not a file, as where a program captures it
        ours = False
    if not ours:
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(1)
    errors = "replace" if sys.stdout.errors in (None, "strict") else sys.stdout.errors
    stream = open(kept, "w", encoding=sys.stdout.encoding, errors=errors, closefd=False)  # noqa: SIM115
    os.dup2(2, 1)
    try:
        yield stream
        stream.flush()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os.dup2(kept, 1)
        with contextlib.suppress(OSError):  # whoever read our output has left
            stream.close()
        os.close(kept)
