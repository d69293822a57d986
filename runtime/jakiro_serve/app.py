"""The HTTP application: its routes and its errors."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from jakiro_runtime.engine import Engine
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_serve.errors import RefusedError, refusal
from jakiro_serve.metrics import RequestCounter
from jakiro_serve.openapi import describe, errors, takes
from jakiro_serve.replies import ChatForm, CompletionForm, Form
from jakiro_serve.requests import ChatRequest, CompletionRequest
from jakiro_serve.responses import ResponsesForm, ResponsesRequest
from jakiro_serve.service import EventStream, ServerOptions, Service


def make_app(engine: Engine, options: ServerOptions) -> FastAPI:
    """The application over an opened engine. Its lifespan starts and ends the thread that decodes."""
    service, tokenizer = Service(engine, options), engine.bundle.tokenizer

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        service.worker.stop()

    app = FastAPI(title="Jakiro", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(RequestCounter, counter=service.metrics.requests)
    if options.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(options.cors_origins), allow_methods=["*"], allow_headers=["*"])

    @app.exception_handler(RefusedError)
    @app.exception_handler(ValidationError)
    @app.exception_handler(UsageError)
    @app.exception_handler(EngineError)
    @app.exception_handler(Exception)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        said = refusal(error)
        headers = {"Retry-After": "1"} if said.status == 429 else {}
        return JSONResponse(said.body(), said.status, headers)

    @app.exception_handler(StarletteHTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        reply = await refused(request, RefusedError(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))
        reply.headers.update(error.headers or {})  # such as Allow
        return reply

    def head(prefix: str) -> dict[str, Any]:
        return {"id": f"{prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": service.name}

    async def reply(request: Request, stream: bool | None, form: Form) -> Response:
        return EventStream(service, form) if stream else await service.whole(request, form)

    @app.post("/v1/chat/completions", **takes(ChatRequest))
    async def chat(request: Request) -> Response:
        asked = await service.body(request, ChatRequest)
        sequences = await run_in_threadpool(service.chat, asked)
        reader = partial(service.reader, asked)
        return await reply(request, asked.stream, ChatForm(tokenizer, head("chatcmpl-"), sequences, reader, asked))

    @app.post("/v1/completions", **takes(CompletionRequest))
    async def complete(request: Request) -> Response:
        asked = await service.body(request, CompletionRequest)
        sequences = await run_in_threadpool(service.complete, asked)
        reader = partial(service.reader, asked)
        return await reply(request, asked.stream, CompletionForm(tokenizer, head("cmpl-"), sequences, reader, asked))

    @app.post("/v1/responses", **takes(ResponsesRequest))
    async def respond(request: Request) -> Response:
        wanted = await service.body(request, ResponsesRequest)
        asked = wanted.as_chat()
        sequences = await run_in_threadpool(service.chat, asked)
        reader = partial(service.reader, asked)
        return await reply(request, asked.stream, ResponsesForm(tokenizer, head("resp_"), sequences, reader, wanted))

    @app.post("/v1/embeddings", status_code=501, response_class=JSONResponse)
    async def embeddings() -> None:
        raise RefusedError(
            501, "This server makes no embeddings; it has /v1/chat/completions, /v1/completions and /v1/responses."
        )

    @app.get("/v1/models", responses=errors(401))
    async def models(request: Request) -> dict[str, Any]:
        service.authorize(request)
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name:path}", responses=errors(401, 404))
    async def model(request: Request, name: str) -> dict[str, Any]:
        service.authorize(request)
        service.check_model(name)
        return _model(service)

    @app.get("/health", responses={503: {"description": "It cannot answer"}})
    async def health() -> Response:
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "the decoding thread has ended"}, 200 if alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses=errors(401))
    async def metrics(request: Request) -> Response:
        service.authorize(request)
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(files("jakiro_serve").joinpath("page.html").read_text(encoding="utf-8"))

    describe(app, ChatRequest, CompletionRequest, ResponsesRequest, key=options.api_key is not None)
    return app


def _model(service: Service) -> dict[str, Any]:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "jakiro"}
