"""What a user sees when something is wrong: one sentence with what was found, what was expected and what to do."""


class EngineError(Exception):
    """A job that failed: a damaged engine, a backend that is not installed. Exit code 1."""

    exit_code = 1


class UsageError(EngineError):
    """A wrong call or unusable input: a missing folder, an empty prompt, a prompt that does not fit. Exit code 2."""

    exit_code = 2
