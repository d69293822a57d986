"""The OpenAPI document: bodies that are checked by hand, so that errors have OpenAI's form, are described here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"
_TEXT: dict[str, Any] = {"type": "string"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    400: "A wrong request, or a prompt that does not fit the context",
    401: "The API key is missing or wrong",
    404: "No such model",
    408: "The body was too slow",
    413: "The body is too large",
    429: "The queue is full",
    500: "A fault of the engine",
    504: "The answer took longer than it may",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What routes say of their errors."""
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}}
    return {status: {"description": _STATUSES[status], "content": content} for status in statuses}


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """What a route says of a body that it reads itself, and of its reply: JSON, or a stream of events."""
    body = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=kind.__name__)}}}
    reply = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": _TEXT}}
    return {
        "responses": {200: {"description": "The answer", "content": reply}, **errors(*_STATUSES)},
        "openapi_extra": {"requestBody": {"required": True, "content": body}},
    }


def describe(app: FastAPI, *kinds: type[BaseModel], key: bool) -> None:
    """Have the application's document describe these bodies. key: requests need an API key."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_REFERENCE)
            components = made.setdefault("components", {})
            components["schemas"] = {**components.get("schemas", {}), **found.get("$defs", {}), "Error": _ERROR}
            if key:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                made["security"] = [{"key": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI has it
