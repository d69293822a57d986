"""The HTTP application: routes, checks of a request, and what is counted."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from jakiro_runtime.decoding.scheduler import Scheduler
from jakiro_runtime.decoding.sequence import GenerationResult, TokenSequence
from jakiro_runtime.engine import Engine
from jakiro_runtime.errors import ContextError, ConversationError, EngineError, UsageError
from jakiro_runtime.sampling.grammar import Grammar
from jakiro_serve import worker as workers
from jakiro_serve.replies import ChatForm, CompletionForm, RefusedError, usage
from jakiro_serve.requests import ChatRequest, CompletionRequest

_Form = ChatForm | CompletionForm
_Body = TypeVar("_Body", ChatRequest, CompletionRequest)
_BODY_SECONDS = 30  # for the whole of a request's body


@dataclass(frozen=True)
class ServerOptions:
    """How an engine is served.

    model_name: what clients call it; the engine's own name by default
    api_key: asked of every request but those for the page and /health; None asks for none
    most_running: answers that are decoded together
    most_waiting: answers that may wait for that
    most_body: bytes of a request's body
    cors_origins: pages of other origins that may call the server
    """

    model_name: str | None = None
    api_key: str | None = None
    most_running: int = 8
    most_waiting: int = 64
    most_body: int = 4 << 20
    cors_origins: Sequence[str] = ()
    speculate: bool = True
    lookup: bool = True
    nodes: int | None = None
    chunk: int = 128


class _Metrics:
    """What /metrics shows."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)  # type: ignore[arg-type]
        self._scheduler = scheduler
        of = self.registry
        self.requests = Counter("jakiro_requests", "Requests by path and HTTP status", ["path", "status"], registry=of)
        self.tokens = Counter("jakiro_tokens", "Tokens: prompt, cached, completion, accepted", ["kind"], registry=of)
        self.rounds = Counter("jakiro_rounds", "Verification passes, of every answer", registry=of)
        self.first = Histogram(
            "jakiro_first_token_seconds", "From a request's arrival in the queue to its first token", registry=of
        )

    def collect(self) -> list[GaugeMetricFamily]:
        """Gauges, read when asked for."""
        return [
            GaugeMetricFamily("jakiro_running", "Answers that are decoded now", value=self._scheduler.running),
            GaugeMetricFamily("jakiro_waiting", "Answers that wait for their turn", value=self._scheduler.waiting),
        ]

    def count(self, sequences: Sequence[TokenSequence]) -> None:
        """Count answers that ended or were left."""
        for stats in (sequence.stats for sequence in sequences):
            self.tokens.labels("prompt").inc(stats.prompt_tokens)
            self.tokens.labels("cached").inc(stats.reused_tokens)
            self.tokens.labels("completion").inc(stats.new_tokens)
            self.tokens.labels("accepted").inc(sum(stats.accepted))
            self.rounds.inc(stats.rounds)
            if stats.new_tokens:
                self.first.observe(stats.first_token)


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
        self.metrics = _Metrics(scheduler)
        self._grammar = lru_cache(32)(lambda schema: engine.grammar(json_schema=schema))

    def authorize(self, request: Request) -> None:
        """Raises RefusedError where the API key is missing or wrong."""
        if self.options.api_key is None:
            return
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.options.api_key}".encode()):
            raise RefusedError(
                401, "The API key is missing or wrong; send it as: Authorization: Bearer KEY.", code="invalid_api_key"
            )

    async def body(self, request: Request, kind: type[_Body]) -> _Body:
        """A request's body. Raises RefusedError where it is too large, too slow, no JSON, or not what the endpoint takes."""
        self.authorize(request)
        try:
            raw = await asyncio.wait_for(self._read(request), _BODY_SECONDS)
            given = json.loads(raw)
            if isinstance(given, dict):  # null is what is not given
                given = {name: value for name, value in given.items() if value is not None}
            parsed: _Body = kind.model_validate(given)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"The request's body did not arrive within {_BODY_SECONDS} seconds.") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            what = "is not supported by this server" if first["type"] == "extra_forbidden" else f"is not valid: {first['msg']}"
            raise RefusedError(400, f"{place or 'The body'} {what}.", param=place or None) from None
        except (ValueError, RecursionError):
            raise RefusedError(400, "The body is not JSON (UTF-8); send a JSON object.") from None
        if parsed.model is not None:
            self.check_model(parsed.model)
        return parsed

    def check_model(self, name: str) -> None:
        """Raises RefusedError where this server has another model."""
        if name != self.name:
            raise RefusedError(
                404, f"There is no model {name!r} here; this server has {self.name!r}.", "model", "model_not_found"
            )

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
        return self._sequences(asked, self.engine.chat_prompt(messages), asked.most_tokens)

    def complete(self, asked: CompletionRequest) -> list[TokenSequence]:
        """The answers of some prompts, n for each in turn, not begun."""
        prompts = asked.prompts
        if not prompts or len(prompts) * asked.n > self.options.most_running + self.options.most_waiting:
            raise RefusedError(400, "prompt holds no prompt, or more than this server can queue.", "prompt")
        ids = [self.engine.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        return [sequence for each in ids for sequence in self._sequences(asked, each, asked.most_tokens)]

    def _sequences(self, asked: ChatRequest | CompletionRequest, ids: list[int], most: int | None) -> list[TokenSequence]:
        bundle, schema = self.engine.bundle, asked.schema_text
        grammar: Grammar | None = self._grammar(schema) if schema is not None else None
        limit = most or bundle.manifest.model.max_context
        ways = asked.sampling(asked.logprob_count, len(ids), asked.seeds())
        return [TokenSequence(bundle, ids, limit, way, asked.stops, grammar) for way in ways]

    async def answer(
        self, request: Request, asked: ChatRequest | CompletionRequest, sequences: list[TokenSequence], form: _Form
    ) -> Response:
        """Decode and reply, whole or streamed. A client that leaves cancels its answers."""
        prompts = len(asked.prompts) if isinstance(asked, CompletionRequest) else 1
        try:
            live = self.worker.submit(sequences)
        except workers.QueueFullError:
            raise RefusedError(429, "The server's queue is full; try again later.", code="queue_full") from None
        if asked.stream:
            return StreamingResponse(
                self._stream(live, sequences, form, asked.include_usage, prompts, asked.draft_trees),
                media_type="text/event-stream",
            )
        results = [GenerationResult() for _ in sequences]

        async def collect() -> None:
            async for index, progress in live:
                results[index].add(progress.chunk)

        with live:
            work, left = asyncio.ensure_future(collect()), asyncio.ensure_future(_gone(request))
            try:
                await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    return Response(status_code=499)  # nobody reads it
                await work
            finally:
                work.cancel()
                left.cancel()
                self.metrics.count(sequences)
        choices = [form.choice(index, result) for index, result in enumerate(results)]
        return JSONResponse({**form.head, "object": form.kind, "choices": choices, "usage": usage(sequences, prompts)})

    async def _stream(
        self, live: workers.Request, sequences: list[TokenSequence], form: _Form, with_usage: bool, prompts: int, trees: bool
    ) -> AsyncIterator[str]:
        head = {**form.head, "object": "chat.completion.chunk" if isinstance(form, ChatForm) else form.kind}
        no_usage = {"usage": None} if with_usage else {}
        with live:
            try:
                async for index, progress in live:
                    chunk = progress.chunk
                    choice = form.delta(index, chunk.text, chunk.logprobs, chunk.finish_reason)
                    rounds = {"draft_tree": form.draft_tree(progress.gain, sequences[index].stats)} if trees else {}
                    yield _event({**head, "choices": [choice], **no_usage, **rounds})
                if with_usage:
                    yield _event({**head, "choices": [], "usage": usage(sequences, prompts)})
            except Exception as error:  # the status is sent already
                yield _event(refusal(error).body())
            finally:
                self.metrics.count(sequences)
        yield "data: [DONE]\n\n"


def refusal(error: Exception) -> RefusedError:
    """The reply that an error gets."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, UsageError):
        return RefusedError(400, str(error), code="context_length_exceeded" if isinstance(error, ContextError) else None)
    if isinstance(error, EngineError):
        return RefusedError(400 if isinstance(error, ConversationError) else 500, str(error))
    return RefusedError(500, f"Unexpected {type(error).__name__}; the server's log has more.")


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(engine: Engine, options: ServerOptions) -> FastAPI:
    """The application over an opened engine. Its lifespan starts and ends the thread that decodes."""
    service = Service(engine, options)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop()

    app = FastAPI(title="Jakiro", lifespan=lifespan, docs_url=None, redoc_url=None)
    if options.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(options.cors_origins), allow_methods=["*"], allow_headers=["*"])

    @app.exception_handler(RefusedError)
    @app.exception_handler(UsageError)
    @app.exception_handler(EngineError)
    @app.exception_handler(Exception)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        said = refusal(error)
        headers = {"Retry-After": "1"} if said.status == 429 else {}
        service.metrics.requests.labels(_known_path(request), str(said.status)).inc()
        return JSONResponse(said.body(), said.status, headers)

    @app.exception_handler(StarletteHTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        return await refused(request, RefusedError(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))

    def _known_path(request: Request) -> str:
        route = request.scope.get("route")
        return getattr(route, "path", "other")

    async def reply(
        request: Request, kind: type[_Body], begin: Callable[[_Body], list[TokenSequence]], form: type[_Form], prefix: str
    ) -> Response:
        asked = await service.body(request, kind)
        sequences = await run_in_threadpool(begin, asked)
        head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name}
        found = await service.answer(request, asked, sequences, form(engine.bundle.tokenizer, head))
        service.metrics.requests.labels(_known_path(request), str(found.status_code)).inc()
        return found

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await reply(request, ChatRequest, service.chat, ChatForm, "chatcmpl")

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await reply(request, CompletionRequest, service.complete, CompletionForm, "cmpl")

    @app.post("/v1/embeddings")
    async def embeddings() -> Response:
        raise RefusedError(501, "This server makes no embeddings; it has /v1/chat/completions and /v1/completions.")

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        service.authorize(request)
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> dict[str, Any]:
        service.authorize(request)
        service.check_model(name)
        return _model(service)

    @app.get("/health")
    async def health() -> Response:
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "the decoding thread has ended"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        service.authorize(request)
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(files("jakiro_serve").joinpath("page.html").read_text(encoding="utf-8"))

    return app


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "jakiro"}
