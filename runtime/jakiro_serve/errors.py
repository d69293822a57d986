"""Errors in OpenAI's form."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from jakiro_runtime.errors import ContextError, ConversationError, EngineError, UsageError


class RefusedError(Exception):
    """A request that is answered with an error: its HTTP status, and OpenAI's fields."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        kind = "server_error" if self.status >= 500 else kind
        message, param = (text.encode(errors="replace").decode() if text else text for text in (str(self), self.param))
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}


def refusal(error: Exception) -> RefusedError:
    """The reply that an error gets."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = "is not supported by this server" if first["type"] == "extra_forbidden" else f"is not valid: {first['msg']}"
        return RefusedError(400, f"{place or 'The body'} {what}.", param=place or None)
    if isinstance(error, UsageError):
        return RefusedError(400, str(error), code="context_length_exceeded" if isinstance(error, ContextError) else None)
    if isinstance(error, EngineError):
        return RefusedError(400 if isinstance(error, ConversationError) else 500, str(error))
    return RefusedError(500, f"Unexpected {type(error).__name__}; the server's log has more.")
