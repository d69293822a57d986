"""Errors of an export: each is a sentence for the user."""

from jakiro_runtime.errors import UserError


class ExportError(UserError):
    """A failed job: the message says what was found, what was expected and what to do. Exit code 1."""


class UsageError(ExportError):
    """A wrong call or unusable input: the message says which, and what would work. Exit code 2."""

    exit_code = 2
