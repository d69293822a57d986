"""What a user sees when something is wrong: one sentence with what was found, what was expected and what to do."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Whatever a command says in a sentence, without a traceback. exit_code: what the command ends with."""

    exit_code = 1


class EngineError(UserError):
    """A job that failed: a damaged engine, a backend that is not installed. Exit code 1."""


class UsageError(EngineError):
    """A wrong call or unusable input: a missing folder, an empty prompt, a prompt that does not fit. Exit code 2."""

    exit_code = 2


@contextmanager
def cli_errors(debug: bool, interrupted: str = "", full: str = "make room and try again") -> Iterator[None]:
    """A command: its errors become a sentence on standard error and an exit code.

    Args:
        debug: show the traceback of an error instead
        interrupted: what Ctrl-C says
        full: what is said of a full disk, after "The disk is full"
    """
    try:
        yield
    except UserError as error:
        if debug:
            raise
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if debug or error.errno != errno.ENOSPC:
            raise
        print(f"Error: The disk is full; {full}.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
