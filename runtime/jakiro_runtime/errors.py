"""What a user sees when something is wrong: one sentence with what was found, what was expected and what to do."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """Whatever a command says in a sentence, without a traceback. exit_code: what the command ends with."""

    exit_code = 1


class EngineError(UserError):
    """A job that failed: a damaged engine, a backend that is not installed. Exit code 1."""


class UsageError(EngineError):
    """A wrong call or unusable input: a missing folder, an empty prompt, a prompt that does not fit. Exit code 2."""

    exit_code = 2


class ContextError(UsageError):
    """A prompt that does not fit the engine's context."""


class ConversationError(EngineError):
    """A conversation of which the model's chat template makes no prompt."""


class _Terminated(BaseException):
    """The system asked the command to end. Like KeyboardInterrupt, nothing but cleaning up stops it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def cli_errors(debug: bool, interrupted: str = "", full: str = "make room and try again") -> Iterator[None]:
    """A command: its errors become a sentence on standard error and an exit code.

    1 for a job that failed, 2 for a wrong call, 130 for Ctrl-C, 143 for SIGTERM, which cleans up as Ctrl-C does.

    Args:
        debug: show the traceback of an error instead
        interrupted: what Ctrl-C says
        full: what is said of a full disk, after "The disk is full"
    """
    try:
        with _termination():
            yield
    except (KeyboardInterrupt, _Terminated) as error:
        say(interrupted)
        sys.exit(error.exit_code if isinstance(error, _Terminated) else 130)
    except BrokenPipeError:
        raise
    except Exception as error:
        sentence = _sentence(error, full)
        if debug or sentence is None:
            raise
        say(f"Error: {sentence}")
        sys.exit(error.exit_code if isinstance(error, UserError) else 1)


def say(text: str) -> None:
    """A line on standard error; nothing where that is closed."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)


def one_line(error: BaseException | str) -> str:
    """What an exception says, on one line of bounded length."""
    text = " ".join(str(error).split()).rstrip(".")
    return (text if len(text) <= 300 else text[:297] + "...") or type(error).__name__


def _sentence(error: Exception, full: str) -> str | None:
    """What a user is told of an exception; None for click's own, which it shows itself."""
    if isinstance(error, UserError):
        return str(error)
    if type(error).__module__.partition(".")[0] == "click":
        return None
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"The disk is full; {full}."
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or one_line(error)}; check the path, its permissions and the disk."
    if isinstance(error, MemoryError):
        return "There is not enough memory; close other programs, or ask for less."
    return f"Unexpected {type(error).__name__}: {one_line(error)}. This is our fault: please report it with what --debug shows."


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM and SIGHUP raise where nobody else handles them, so that everything half done is cleaned up."""

    def end(number: int, frame: Any) -> None:
        raise _Terminated(number)

    main = threading.current_thread() is threading.main_thread()
    ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(each) is signal.SIG_DFL]
    for each in ours:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
