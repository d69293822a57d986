"""POST /v1/responses: OpenAI's Responses API over a chat request. Nothing is kept between requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from jakiro_runtime.decoding.scheduler import Progress
from jakiro_runtime.decoding.sequence import GenerationChunk, GenerationResult
from jakiro_serve.errors import RefusedError
from jakiro_serve.replies import Form, usage
from jakiro_serve.requests import ChatRequest, Strict
from jakiro_serve.tool_calls import AnswerReader, CallArguments, CallStart, Piece, call_id

_LOGPROBS = "message.output_text.logprobs"


class TextFormat(Strict):
    """What an answer must look like. `schema` on the wire."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    description: str | None = None
    strict: bool | None = None
    form: dict[str, Any] | None = Field(default=None, alias="schema")


class TextOptions(Strict):
    """What an answer's text is like."""

    format: TextFormat = TextFormat()


class FunctionTool(Strict):
    """A function that may be called."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Strict):
    """A function that has to be called."""

    type: Literal["function"]
    name: str


class ResponsesRequest(Strict):
    """POST /v1/responses. `metadata` and what follows it change nothing."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    input: Annotated[str, Field(min_length=1)] | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: TextOptions = TextOptions()
    tools: list[FunctionTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    previous_response_id: str | None = None
    background: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None

    def as_chat(self) -> ChatRequest:
        """The same as a conversation. Raises RefusedError where it names an earlier response, or an item is of no known kind."""
        if self.previous_response_id is not None:
            raise RefusedError(
                400,
                "previous_response_id: this server keeps no responses; send the conversation so far as input.",
                "previous_response_id",
            )
        choice = self.tool_choice
        named = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, FunctionChoice) else choice
        wanted = self.text.format
        schema = (
            {"name": wanted.name, "schema": wanted.form} if wanted.type == "json_schema" and wanted.form is not None else None
        )
        given = {
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": _LOGPROBS in (self.include or []) or self.top_logprobs is not None,
            "top_logprobs": self.top_logprobs,
            "response_format": {"type": wanted.type, "json_schema": schema},
            "tools": [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in self.tools or []],
            "tool_choice": named,
            "parallel_tool_calls": self.parallel_tool_calls,
            "stream": self.stream,
        }
        return ChatRequest.model_validate(given)

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for number, item in enumerate(self.input):
            kind = item.get("type", "message")
            if kind == "message":
                messages.append({"role": item.get("role"), "content": item.get("content")})
            elif kind == "function_call":
                function = {"name": item.get("name"), "arguments": item.get("arguments")}
                call = {"id": item.get("call_id"), "type": "function", "function": function}
                if messages and "tool_calls" in messages[-1]:
                    messages[-1]["tool_calls"].append(call)
                else:
                    messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            elif kind == "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
            else:
                raise RefusedError(
                    400,
                    f"input.{number}: {kind!r} is no item that this server reads; it reads message, function_call and "
                    "function_call_output.",
                    "input",
                )
        return messages


@dataclass
class ResponsesForm(Form):
    """Bodies and events of /v1/responses.

    wanted: the request as it came; its reply repeats it
    output: the items so far
    logprobs: of tokens whose text has not come yet
    """

    wanted: ResponsesRequest
    output: list[dict[str, Any]] = field(default_factory=list)
    reader: AnswerReader | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    count: int = 0

    def whole(self, results: Sequence[GenerationResult]) -> dict[str, Any]:
        self._take(results[0])
        return self._response(self._ending)

    def begin(self) -> list[dict[str, Any]]:
        body = self._response("in_progress")
        return [self._event("response.created", response=body), self._event("response.in_progress", response=body)]

    def events(self, index: int, progress: Progress) -> list[dict[str, Any]]:
        return self._take(progress.chunk)

    def end(self) -> list[dict[str, Any]]:
        return [self._event(f"response.{self._ending}", response=self._response(self._ending))]

    def failed(self, error: RefusedError) -> list[dict[str, Any]]:
        told = error.body()["error"]
        body = {**self._response("failed"), "error": {"code": "server_error", "message": told["message"]}}
        return [self._event("response.failed", response=body)]

    @property
    def last(self) -> str:
        return ""

    @property
    def _ending(self) -> str:
        return "incomplete" if self.reason in ("length", "context") else "completed"

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.count += 1
        return {"type": kind, "sequence_number": self.count - 1, **fields}

    def _response(self, status: str) -> dict[str, Any]:
        wanted, done = self.wanted, status in ("completed", "incomplete")
        return {
            "id": self.head["id"],
            "object": "response",
            "created_at": self.head["created"],
            "model": self.head["model"],
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": wanted.instructions,
            "max_output_tokens": wanted.max_output_tokens,
            "metadata": wanted.metadata or {},
            "output": [dict(item) for item in self.output],
            "parallel_tool_calls": wanted.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if wanted.temperature is None else wanted.temperature,
            "text": wanted.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": wanted.tool_choice.model_dump()
            if isinstance(wanted.tool_choice, FunctionChoice)
            else wanted.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in wanted.tools or []],
            "top_p": 1.0 if wanted.top_p is None else wanted.top_p,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
        }

    def _usage(self) -> dict[str, Any]:
        found = usage(self.sequences, 1)
        return {
            "input_tokens": found["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": found["prompt_tokens_details"]["cached_tokens"]},
            "output_tokens": found["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": found["total_tokens"],
        }

    def _take(self, chunk: GenerationChunk | GenerationResult) -> list[dict[str, Any]]:
        """What a chunk brings: events, and the items of `output` grow with them."""
        self.reader = self.reader or self.new_reader()
        pieces = self.reader.push(chunk.text)
        if chunk.finish_reason:
            self.reason = chunk.finish_reason
            pieces += self.reader.finish()
        self.logprobs += self.token_logprobs(chunk.logprobs or [])
        made = [event for piece in pieces for event in self._piece(piece)]
        if chunk.finish_reason:
            if not self.output:
                made += self._open_message()
            if self.output[-1]["type"] == "message":
                self.output[-1]["content"][0]["logprobs"] += self.logprobs
            made += self._close()
        return made

    def _piece(self, piece: Piece) -> list[dict[str, Any]]:
        if isinstance(piece, CallStart):
            item = {"type": "function_call", "id": f"fc_{piece.id}", "call_id": piece.id, "name": piece.name, "arguments": ""}
            return [*self._close(), *self._open(item)]
        if isinstance(piece, CallArguments):
            item = self.output[-1]
            item["arguments"] += piece.text
            return [self._event("response.function_call_arguments.delta", **self._place(), delta=piece.text)]
        made = []
        if not self.output or self.output[-1]["type"] != "message":
            made = [*self._close(), *self._open_message()]
        part = self.output[-1]["content"][0]
        part["text"] += piece
        logprobs, self.logprobs = self.logprobs, []
        part["logprobs"] += logprobs
        place = {**self._place(), "content_index": 0}
        return [*made, self._event("response.output_text.delta", **place, delta=piece, logprobs=logprobs)]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def _open(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        self.output.append({**item, "status": "in_progress"})
        return [self._event("response.output_item.added", output_index=len(self.output) - 1, item=dict(self.output[-1]))]

    def _open_message(self) -> list[dict[str, Any]]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        opened = self._open({"type": "message", "id": f"msg_{call_id()}", "role": "assistant", "content": []})
        self.output[-1]["content"].append(part)
        return [*opened, self._event("response.content_part.added", **self._place(), content_index=0, part=_copy(part))]

    def _close(self) -> list[dict[str, Any]]:
        """The last item is complete."""
        if not self.output or self.output[-1]["status"] != "in_progress":
            return []
        item = self.output[-1]
        item["status"] = self._ending
        if item["type"] == "message":
            part, place = item["content"][0], {**self._place(), "content_index": 0}
            text = self._event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
            made = [text, self._event("response.content_part.done", **place, part=_copy(part))]
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            made = [self._event("response.function_call_arguments.done", **self._place(), **done)]
        return [*made, self._event("response.output_item.done", output_index=len(self.output) - 1, item=_copy(item))]


def _copy(given: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in given.items()}
