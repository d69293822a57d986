"""The application called as a server calls it, without a network: places in the queue, time limits, its description."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from jakiro_runtime import Engine
from jakiro_serve.app import make_app
from jakiro_serve.service import ServerOptions
from scripted import client_of, say

FOREVER = {"messages": [{"role": "user", "content": "Hello"}], "n": 3, "logit_bias": {"2": -1e9}}


async def call(app: Any, body: dict[str, Any], events: int | None) -> list[dict[str, Any]]:
    """What a client is sent that leaves after some events; None: one that stays."""
    sent: list[dict[str, Any]] = []
    inbox = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    left = asyncio.Event()
    if events == 0:
        left.set()

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        if not left.is_set():  # else it returns without a pause: the reply is not begun
            await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await asyncio.sleep(0.01)  # as where the socket is full
        sent.append(message)
        if len(sent) == events:
            left.set()

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
    await app({**scope, "asgi": {"version": "3.0", "spec_version": "2.3"}}, receive, send)
    return sent


def test_a_place_is_given_back_whenever_its_client_leaves(engine: Engine) -> None:
    app = make_app(engine, ServerOptions(most_running=2, most_waiting=1))  # room for one such request

    async def leave_again_and_again() -> None:
        async with app.router.lifespan_context(app):
            for stream in (True, False):
                for events in (0, 1, 2, 0):
                    sent = await call(app, {**FOREVER, "stream": stream}, events if stream else 0)
                    assert all(message.get("status", 200) in (200, 499) for message in sent)
            whole = await call(app, {**FOREVER, "max_tokens": 3}, None)
            assert whole[0]["status"] == 200
            assert len(json.loads(whole[1]["body"])["choices"]) == 3

    asyncio.run(leave_again_and_again())


def test_an_answer_that_takes_too_long_is_ended(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(engine, model_name="tiny", request_seconds=0.2) as client:
        forever: dict[str, Any] = {"model": "tiny", "messages": FOREVER["messages"], "logit_bias": {"2": -1e9}}
        with pytest.raises(openai.InternalServerError, match=r"longer than 0.2 seconds") as refused:
            client.chat.completions.create(**forever)
        assert refused.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"longer than 0.2 seconds"):
            list(client.chat.completions.create(**forever, stream=True))
        assert client.chat.completions.create(**forever, max_tokens=3).usage.completion_tokens == 3
        say(monkeypatch, "x" * 900)
        assert list(client.responses.create(model="tiny", input="x", stream=True))[-1].type == "response.failed"


def test_the_document_describes_every_body(engine: Engine) -> None:
    document = make_app(engine, ServerOptions(api_key="x")).openapi()
    schemas = document["components"]["schemas"]
    for path, name in (
        ("chat/completions", "ChatRequest"),
        ("completions", "CompletionRequest"),
        ("responses", "ResponsesRequest"),
    ):
        operation = document["paths"][f"/v1/{path}"]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{name}"}
        assert {"200", "400", "401", "404", "408", "413", "429", "500", "504"} <= set(operation["responses"])
    assert {"messages", "tools", "logit_bias"} <= set(schemas["ChatRequest"]["properties"])
    assert schemas["ChatRequest"]["additionalProperties"] is False
    assert document["security"] == [{"key": []}]
    text = json.dumps(document)
    assert all(reference.split('"')[0] in schemas for reference in text.split("#/components/schemas/")[1:])
