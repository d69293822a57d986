"""Whose places in the queue are given back, and when: the application called as a server calls it, without a network."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from jakiro_runtime import Engine
from jakiro_serve.app import make_app
from jakiro_serve.service import ServerOptions

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
