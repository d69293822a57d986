"""Requests in OpenAI's form: what is accepted, in which range, and what it means to the sampler."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from jakiro_runtime.sampling import LogitsProcessor, Sampling


class Strict(BaseModel):
    """Takes no key that it does not know."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Strict):
    """include_usage: a last chunk has the request's usage."""

    include_usage: bool = False


class JsonSchema(BaseModel):
    """A named schema. `schema` on the wire."""

    name: str = ""
    form: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(Strict):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class Function(Strict):
    """A function that may be called. strict: arguments of calls that `tool_choice` demands always follow the schema."""

    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool; there are functions alone."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """Which function."""

    name: str


class ToolChoice(Strict):
    """A function that has to be called."""

    type: Literal["function"]
    function: FunctionName


@dataclass(frozen=True)
class ToolUse:
    """Functions that an answer may call.

    demanded: it has to call one
    chosen: that one alone
    several: it may make more than one call
    """

    functions: list[Function]
    demanded: bool = False
    chosen: str | None = None
    several: bool = True

    @property
    def callable(self) -> list[dict[str, Any]]:
        """Those that may be called."""
        known = [function for function in self.functions if self.chosen in (None, function.name)]
        return [function.model_dump(exclude_none=True) for function in known]

    @property
    def for_template(self) -> list[dict[str, Any]]:
        """All of them, as chat templates take them."""
        return [{"type": "function", "function": function.model_dump(exclude_none=True)} for function in self.functions]


class Generation(Strict):
    """What both endpoints take.

    draft_trees: a stream shows each round's tree
    speculate: False decodes this request without speculation; the answer is the same
    user, metadata, store: change nothing
    """

    model: str | None = None
    n: int = Field(1, ge=1, le=16)
    stop: str | list[str] | None = Field(None, max_length=1000)
    seed: int | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=1e-3, le=1e3)
    logit_bias: dict[int, float] | None = Field(None, json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,7}$"}})
    max_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    draft_trees: bool = False
    speculate: bool = True
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def tool_use(self) -> ToolUse | None:
        """The functions that the answer may call; None where it calls none."""
        return None

    @property
    def schema_text(self) -> str | None:
        """The JSON schema of the answer, as text; None where any text will do."""
        form = self.response_format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object" or form.json_schema is None:
            return json.dumps({"type": "object"})
        return json.dumps(form.json_schema.form)

    def sampling(self, logprobs: int | None, prompt_tokens: int, seeds: Sequence[int]) -> list[Sampling]:
        """How each of the n answers is drawn. Temperature is 1 unless the request says otherwise, as in OpenAI's API."""
        penalty = _penalty(self.presence_penalty or 0.0, self.frequency_penalty or 0.0, prompt_tokens)
        return [
            Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_k=self.top_k or 0,
                top_p=1.0 if self.top_p is None else self.top_p,
                min_p=self.min_p or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                logit_bias=self.logit_bias or {},
                logprobs=logprobs,
                seed=seed,
                processors=[penalty] if penalty else [],
            )
            for seed in seeds
        ]

    def seeds(self) -> list[int]:
        """One for each answer: from the request's seed on, or random."""
        first = secrets.randbits(64) if self.seed is None else self.seed
        return [(first + index) % (1 << 64) for index in range(self.n)]


class Message(BaseModel):
    """A message of a conversation, with whatever the chat template reads of it."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1)
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(Generation):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages, as templates expect them: a content of several texts is one, arguments of calls are objects.

        Raises ValueError where one holds a part that is no text.
        """
        return [plain_message(message.model_dump()) for message in self.messages]

    @property
    def tool_use(self) -> ToolUse | None:
        """The functions, unless no call is wanted."""
        if not self.tools or self.tool_choice == "none":
            return None
        chosen = self.tool_choice.function.name if isinstance(self.tool_choice, ToolChoice) else None
        demanded = self.tool_choice == "required" or chosen is not None
        functions = [tool.function for tool in self.tools]
        return ToolUse(functions, demanded, chosen, self.parallel_tool_calls is not False and chosen is None)

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: Text | Tokens | Annotated[list[Text], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens or 16  # as in OpenAI's API

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        whole = self.prompt and isinstance(self.prompt[0], int)
        return [list(self.prompt)] if whole else list(self.prompt)  # type: ignore[arg-type]


def plain_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as templates expect it. Raises ValueError where it holds a part that is no text."""
    plain = {**message, "content": _joined(message.get("content"))}
    if plain.get("role") == "developer":  # OpenAI's newer word; templates know the older one
        plain["role"] = "system"
    if isinstance(calls := message.get("tool_calls"), list):
        plain["tool_calls"] = [_parsed(call) for call in calls]
    return plain


def _parsed(call: Any) -> Any:
    """A call whose arguments are an object, where they are JSON text of one."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _joined(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise ValueError("a message's content holds a part that is no text; this model reads text alone")
    return "".join(part["text"] for part in content)


def _penalty(presence: float, frequency: float, prompt_tokens: int) -> LogitsProcessor | None:
    """OpenAI's penalties: taken from the scores of tokens that the answer has, once, and for each time."""
    if not presence and not frequency:
        return None

    def penalised(prefix: Sequence[int], scores: np.ndarray) -> np.ndarray:
        for token, times in Counter(prefix[prompt_tokens:]).items():
            scores[token] -= presence + frequency * times
        return scores

    return penalised
