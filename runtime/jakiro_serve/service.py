"""An engine as a service: checks of a request, its answers while they are decoded, and its reply."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from jakiro_runtime.decoding.scheduler import Scheduler
from jakiro_runtime.decoding.sequence import GenerationResult, TokenSequence
from jakiro_runtime.engine import Engine
from jakiro_runtime.sampling.grammar import Grammar
from jakiro_serve import worker as workers
from jakiro_serve.errors import RefusedError, refusal
from jakiro_serve.metrics import Metrics
from jakiro_serve.replies import Form, sse
from jakiro_serve.requests import ChatRequest, CompletionRequest
from jakiro_serve.responses import ResponsesRequest
from jakiro_serve.tool_calls import MARKERS, AnswerReader, ToolCallReader, calls_grammar, tool_format

Body = TypeVar("Body", ChatRequest, CompletionRequest, ResponsesRequest)


@dataclass(frozen=True)
class ServerOptions:
    """How an engine is served.

    model_name: what clients call it; the engine's own name by default
    api_key: asked of every request but those for the page and /health; None asks for none
    most_running: answers that are decoded together
    most_waiting: answers that may wait for that
    most_body: bytes of a request's body
    body_seconds: in which a request's body arrives
    request_seconds: for a request's answers, the wait in the queue included; None: as long as it takes
    cors_origins: pages of other origins that may call the server
    """

    model_name: str | None = None
    api_key: str | None = None
    most_running: int = 8
    most_waiting: int = 64
    most_body: int = 4 << 20
    body_seconds: float = 30
    request_seconds: float | None = None
    cors_origins: Sequence[str] = ()
    speculate: bool = True
    lookup: bool = True
    nodes: int | None = None
    chunk: int = 128


class Service:
    """An engine, the worker that decodes with it, and how requests become answers."""

    def __init__(self, engine: Engine, options: ServerOptions) -> None:
        self.engine, self.options = engine, options
        self.name = options.model_name or engine.manifest.model.name
        self.created = int(time.time())
        scheduler = Scheduler(
            engine.bundle, options.speculate, options.chunk, options.nodes, options.lookup, options.most_running
        )
        self.worker = workers.Worker(scheduler, options.most_running + options.most_waiting)
        self.metrics = Metrics(scheduler)
        self._grammar = lru_cache(32)(lambda kind, text: engine.grammar(**{kind: text}))
        template = engine.bundle.template
        self.tool_format = tool_format(template.source(tools=True)) if template else None

    def authorize(self, request: Request) -> None:
        """Raises RefusedError where the API key is missing or wrong."""
        if self.options.api_key is None:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.options.api_key}".encode()):
            raise RefusedError(
                401, "The API key is missing or wrong; send it as: Authorization: Bearer KEY.", code="invalid_api_key"
            )

    def check_model(self, name: str) -> None:
        """Raises RefusedError where this server has another model."""
        if name != self.name:
            raise RefusedError(
                404, f"There is no model {name!r} here; this server has {self.name!r}.", "model", "model_not_found"
            )

    async def body(self, request: Request, kind: type[Body]) -> Body:
        """A request's body. Raises RefusedError where it is too large, too slow, no JSON, or not what the endpoint takes."""
        self.authorize(request)
        seconds = self.options.body_seconds
        try:
            raw = await asyncio.wait_for(self._read(request), seconds)
            given = json.loads(raw)
            if isinstance(given, dict):  # null is what is not given
                given = {name: value for name, value in given.items() if value is not None}
            parsed: Body = kind.model_validate(given)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"The request's body did not arrive within {seconds:g} seconds.") from None
        except ValidationError:
            raise
        except ClientDisconnect:
            raise RefusedError(400, "The client left before the body was complete.") from None
        except (ValueError, RecursionError):
            raise RefusedError(400, "The body is not JSON (UTF-8); send a JSON object.") from None
        if parsed.model is not None:
            self.check_model(parsed.model)
        return parsed

    async def _read(self, request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.options.most_body:
                raise RefusedError(413, f"The body is larger than {self.options.most_body} bytes, the most this server takes.")
            parts.append(part)
        return b"".join(parts)

    def chat(self, asked: ChatRequest) -> list[TokenSequence]:
        """The answers of a conversation, not begun."""
        try:
            messages = asked.conversation
        except ValueError as error:
            raise RefusedError(400, f"messages: {error}.", "messages") from None
        use = asked.tool_use
        if use is not None and self.tool_format is None:
            raise RefusedError(
                400,
                "tools: this model's chat template has no tools, or in a form that this server does not read (it reads those of "
                "Hermes and Qwen, Llama 3, and Mistral).",
                "tools",
            )
        if use is not None and not use.callable:
            raise RefusedError(400, f"tool_choice: there is no function {use.chosen!r} among the tools.", "tool_choice")
        ids = self.engine.chat_prompt(messages, tools=use.for_template if use else None)
        return self._sequences(asked, ids, asked.most_tokens)

    def complete(self, asked: CompletionRequest) -> list[TokenSequence]:
        """The answers of some prompts, n for each in turn, not begun."""
        prompts = asked.prompts
        if not prompts or len(prompts) * asked.n > self.options.most_running + self.options.most_waiting:
            raise RefusedError(400, "prompt holds no prompt, or more than this server can queue.", "prompt")
        ids = [self.engine.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        return [sequence for each in ids for sequence in self._sequences(asked, each, asked.most_tokens)]

    def _sequences(self, asked: ChatRequest | CompletionRequest, ids: list[int], most: int | None) -> list[TokenSequence]:
        bundle, use = self.engine.bundle, asked.tool_use
        limit = most or bundle.manifest.model.max_context
        ways = asked.sampling(asked.logprob_count, len(ids), asked.seeds())
        shown = MARKERS if use else ()
        return [TokenSequence(bundle, ids, limit, way, asked.stops, self._rules(asked), shown, asked.speculate) for way in ways]

    def _rules(self, asked: ChatRequest | CompletionRequest) -> Grammar | None:
        """What an answer must look like: a schema, calls, or one of the two."""
        use, schema, form = asked.tool_use, asked.schema_text, self.tool_format
        if use is None or form is None or not (use.demanded or schema):
            return self._grammar("json_schema", schema) if schema is not None else None
        otherwise = None if use.demanded else schema
        return self._grammar("lark", calls_grammar(form, use.callable, self.engine.bundle.tokenizer, use.several, otherwise))

    def reader(self, asked: ChatRequest | CompletionRequest) -> AnswerReader:
        """What reads one answer to a request."""
        use = asked.tool_use
        if use is None or self.tool_format is None:
            return AnswerReader()
        return ToolCallReader(self.tool_format, [function.name for function in use.functions], None if use.several else 1)

    @contextlib.contextmanager
    def live(self, sequences: list[TokenSequence]) -> Iterator[workers.Request]:
        """Answers while they are decoded. They end with the context, finished or not; call from the event loop.

        Raises RefusedError where the queue is full.
        """
        try:
            request = self.worker.submit(sequences, self.options.request_seconds)
        except workers.QueueFullError:
            raise RefusedError(429, "The server's queue is full; try again later.", code="queue_full") from None
        with request:
            try:
                yield request
            finally:
                self.metrics.count(sequences)

    async def whole(self, request: Request, form: Form) -> Response:
        """Decode, and reply with the whole answers. A client that leaves cancels them."""
        results = [GenerationResult() for _ in form.sequences]

        async def collect(live: workers.Request) -> None:
            async for index, progress in live:
                results[index].add(progress.chunk)

        with self.live(form.sequences) as live:
            work, left = asyncio.ensure_future(collect(live)), asyncio.ensure_future(_gone(request))
            try:
                await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    return Response(status_code=499)  # nobody reads it
                await work
            finally:
                work.cancel()
                left.cancel()
        return JSONResponse(form.whole(results))


class EventStream(StreamingResponse):
    """A reply that decodes while it is sent: its answers begin with the sending and end with it, however it ends.

    A client may leave before the first event is asked for, so it is not the events' iterator that owns them.
    """

    def __init__(self, service: Service, form: Form) -> None:
        super().__init__((), media_type="text/event-stream")
        self._service, self._form = service, form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.live(self._form.sequences) as live:
            self.body_iterator = _events(live, self._form)
            await super().__call__(scope, receive, send)


async def _events(live: workers.Request, form: Form) -> AsyncIterator[str]:
    try:
        for body in form.begin():
            yield sse(body)
        async for index, progress in live:
            for body in form.events(index, progress):
                yield sse(body)
        for body in form.end():
            yield sse(body)
    except Exception as error:  # the status is sent already
        for body in form.failed(refusal(error)):
            yield sse(body)
    if form.last:
        yield form.last


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
