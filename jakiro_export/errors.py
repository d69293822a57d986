"""The one exception a user sees as a sentence."""


class ExportError(Exception):
    """A failed job: the message says what was found, what was expected and what to do. Exit code 1."""


class UsageError(ExportError):
    """A wrong call or unusable input: the message says which, and what would work. Exit code 2."""
