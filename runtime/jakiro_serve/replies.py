"""Replies in OpenAI's form: whole answers, streamed chunks, log-probabilities and usage."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tokenizers import Tokenizer

from jakiro_runtime.decoding.scheduler import Progress
from jakiro_runtime.decoding.sequence import Gain, GenerationChunk, GenerationResult, TokenSequence
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.sampling import TokenLogprob
from jakiro_serve.errors import RefusedError
from jakiro_serve.requests import ChatRequest, CompletionRequest
from jakiro_serve.tool_calls import AnswerReader, CallArguments, CallStart, Piece

_REASONS = {"eos": "stop", "stop": "stop", "constraint": "stop", "length": "length", "context": "length"}


def sse(body: dict[str, Any]) -> str:
    """A server-sent event; one that has a type is named by it."""
    name = f"event: {body['type']}\n" if "type" in body else ""
    return f"{name}data: {json.dumps(body)}\n\n"


def finish_reason(reason: str | None) -> str | None:
    """OpenAI's word for why an answer ended."""
    return _REASONS[reason] if reason else None


def usage(sequences: Sequence[TokenSequence], n: int) -> dict[str, Any]:
    """Tokens of a request; the n answers of one prompt count it once.

    accepted_prediction_tokens are tokens of the answer that the draft had right, rejected ones nodes that were verified in vain.
    """
    each = [sequence.stats for sequence in sequences]
    firsts = each[::n]
    prompt, new = sum(stats.prompt_tokens for stats in firsts), sum(stats.new_tokens for stats in each)
    accepted = sum(sum(stats.accepted) for stats in each)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": sum(stats.reused_tokens for stats in firsts)},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": sum(stats.verified for stats in each) - accepted,
        },
    }


@dataclass
class Form(ABC):
    """A reply's bodies.

    head: id, created and model of the reply
    sequences: the answers
    new_reader: for an answer's text
    """

    tokenizer: Tokenizer
    head: dict[str, Any]
    sequences: list[TokenSequence]
    new_reader: Callable[[], AnswerReader]

    @abstractmethod
    def whole(self, results: Sequence[GenerationResult]) -> dict[str, Any]:
        """The reply in one piece."""

    def begin(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        return []

    @abstractmethod
    def events(self, index: int, progress: Progress) -> list[dict[str, Any]]:
        """What a round of one answer brings."""

    @abstractmethod
    def end(self) -> list[dict[str, Any]]:
        """What a stream ends with."""

    def failed(self, error: RefusedError) -> list[dict[str, Any]]:
        """What a stream ends with after an error."""
        return [error.body()]

    @property
    def last(self) -> str:
        """What follows the last event."""
        return "data: [DONE]\n\n"

    def text(self, token: int) -> str:
        """One token as text, special ones too."""
        decoded: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return decoded

    def token_logprobs(self, found: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        """Log-probabilities of tokens, with their best alternatives."""

        def one(token: int, logprob: float) -> dict[str, Any]:
            text = self.text(token)
            return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

        return [{**one(each.token, each.logprob), "top_logprobs": [one(*pair) for pair in each.top]} for each in found]


@dataclass
class _ChoicesForm(Form):
    """Bodies with `choices`, one for each answer. kind, chunk_kind: of a whole body, and of a chunk; asked: the request."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    asked: ChatRequest | CompletionRequest

    @abstractmethod
    def choice(self, index: int, result: GenerationResult) -> dict[str, Any]:
        """A whole answer."""

    @abstractmethod
    def delta(self, index: int, chunk: GenerationChunk) -> dict[str, Any]:
        """What a chunk brought."""

    def whole(self, results: Sequence[GenerationResult]) -> dict[str, Any]:
        choices = [self.choice(index, result) for index, result in enumerate(results)]
        return {**self.head, "object": self.kind, "choices": choices, "usage": usage(self.sequences, self.asked.n)}

    def events(self, index: int, progress: Progress) -> list[dict[str, Any]]:
        extra: dict[str, Any] = {"usage": None} if self.asked.include_usage else {}
        if self.asked.draft_trees:
            extra["draft_tree"] = self._draft_tree(progress.gain, self.sequences[index].stats)
        return [{**self.head, "object": self.chunk_kind, "choices": [self.delta(index, progress.chunk)], **extra}]

    def end(self) -> list[dict[str, Any]]:
        found = {"choices": [], "usage": usage(self.sequences, self.asked.n)}
        return [{**self.head, "object": self.chunk_kind, **found}] if self.asked.include_usage else []

    def _draft_tree(self, gain: Gain, stats: Stats) -> dict[str, Any] | None:
        """A round: the nodes' texts and parents' rows, [nodes]; the rows that were accepted, the root's 0 first; tau and the
        seconds of all rounds so far.

        None for the prompt's pass.
        """
        if gain.tree is None:
            return None
        texts = [self.text(token) for token in gain.tree.tokens]
        tree = {"texts": texts, "parents": gain.tree.parents, "accepted": list(gain.rows)}
        return {**tree, "tau": stats.tau, "seconds": round(stats.decode, 6)}


@dataclass
class ChatForm(_ChoicesForm):
    """Bodies of /v1/chat/completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    begun: set[int] = field(default_factory=set)
    readers: dict[int, AnswerReader] = field(default_factory=dict)

    def choice(self, index: int, result: GenerationResult) -> dict[str, Any]:
        delta = self.delta(index, result)
        calls = [{key: value for key, value in call.items() if key != "index"} for call in delta["delta"].pop("tool_calls", [])]
        message = {"content": None if calls else "", "refusal": None, **delta.pop("delta")}
        return {**delta, "message": {**message, "tool_calls": calls} if calls else message}

    def delta(self, index: int, chunk: GenerationChunk | GenerationResult) -> dict[str, Any]:
        reader = self._reader(index)
        pieces = [*reader.push(chunk.text), *(reader.finish() if chunk.finish_reason else [])]
        text, calls = "".join(piece for piece in pieces if isinstance(piece, str)), _calls(pieces)
        first = {} if index in self.begun else {"role": "assistant"}
        self.begun.add(index)
        delta: dict[str, Any] = {**first, **({"content": text} if text or (first and not calls) else {})}
        if calls:
            delta["tool_calls"] = calls
        reason = finish_reason(chunk.finish_reason)
        reason = "tool_calls" if reason == "stop" and reader.calls else reason
        return {"index": index, "delta": delta, "logprobs": self._logprobs(chunk.logprobs), "finish_reason": reason}

    def _reader(self, index: int) -> AnswerReader:
        if index not in self.readers:
            self.readers[index] = self.new_reader()
        return self.readers[index]

    def _logprobs(self, found: list[TokenLogprob] | None) -> dict[str, Any] | None:
        return None if found is None else {"content": self.token_logprobs(found), "refusal": None}


def _calls(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """What a chunk brought of calls, one entry for each of them."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if isinstance(piece, CallStart):
            function = {"name": piece.name, "arguments": ""}
            calls[piece.number] = {"index": piece.number, "id": piece.id, "type": "function", "function": function}
        elif isinstance(piece, CallArguments):
            call = calls.setdefault(piece.number, {"index": piece.number, "function": {"arguments": ""}})
            call["function"]["arguments"] += piece.text
    return list(calls.values())


@dataclass
class CompletionForm(_ChoicesForm):
    """Bodies of /v1/completions."""

    kind = chunk_kind = "text_completion"
    offsets: dict[int, int] = field(default_factory=dict)

    def choice(self, index: int, result: GenerationResult) -> dict[str, Any]:
        return self.delta(index, result)

    def delta(self, index: int, chunk: GenerationChunk | GenerationResult) -> dict[str, Any]:
        found = self._logprobs(index, chunk.logprobs)
        return {"index": index, "text": chunk.text, "logprobs": found, "finish_reason": finish_reason(chunk.finish_reason)}

    def _logprobs(self, index: int, found: list[TokenLogprob] | None) -> dict[str, Any] | None:
        if found is None:
            return None

        tokens, offsets, place = [self.text(each.token) for each in found], [], self.offsets.get(index, 0)
        for token in tokens:
            offsets.append(place)
            place += len(token)
        self.offsets[index] = place
        return {
            "tokens": tokens,
            "token_logprobs": [each.logprob for each in found],
            "top_logprobs": [{self.text(token): logprob for token, logprob in each.top} for each in found],
            "text_offset": offsets,
        }
