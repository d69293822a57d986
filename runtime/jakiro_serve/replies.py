"""Replies in OpenAI's form: whole answers, streamed chunks, log-probabilities, usage and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from jakiro_runtime.decoding.sequence import Gain, GenerationResult, TokenSequence
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.sampling import TokenLogprob

_REASONS = {"eos": "stop", "stop": "stop", "constraint": "stop", "length": "length", "context": "length"}


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


def finish_reason(reason: str | None) -> str | None:
    """OpenAI's word for why an answer ended."""
    return _REASONS[reason] if reason else None


def usage(sequences: Sequence[TokenSequence], prompts: int = 1) -> dict[str, Any]:
    """Tokens of a request; the answers of one prompt count it once.

    accepted_prediction_tokens are tokens of the answer that the draft had right, rejected ones nodes that were verified in vain.
    """
    each = [sequence.stats for sequence in sequences]
    firsts = each[:: max(1, len(each) // prompts)]
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
class _Form:
    """What both kinds of bodies have. head: what every body of the request has."""

    tokenizer: Tokenizer
    head: dict[str, Any]

    def text(self, token: int) -> str:
        """One token as text, special ones too."""
        decoded: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return decoded

    def draft_tree(self, gain: Gain, stats: Stats) -> dict[str, Any] | None:
        """A round: the nodes' texts and parents' rows, [nodes]; the rows that were accepted, the root's 0 first; tau so far.

        None for the prompt's pass.
        """
        if gain.tree is None:
            return None
        texts = [self.text(token) for token in gain.tree.tokens]
        return {"texts": texts, "parents": gain.tree.parents, "accepted": list(gain.rows), "tau": stats.tau}


@dataclass
class ChatForm(_Form):
    """Bodies of /v1/chat/completions."""

    kind = "chat.completion"
    begun: set[int] = field(default_factory=set)

    def choice(self, index: int, result: GenerationResult) -> dict[str, Any]:
        """A whole answer."""
        message = {"role": "assistant", "content": result.text, "refusal": None}
        found = self._logprobs(result.logprobs)
        return {"index": index, "message": message, "logprobs": found, "finish_reason": finish_reason(result.finish_reason)}

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None, reason: str | None) -> dict[str, Any]:
        """What a chunk brought."""
        first = {} if index in self.begun else {"role": "assistant"}
        self.begun.add(index)
        delta = {**first, "content": text} if text or first else {}
        found = self._logprobs(logprobs)
        return {"index": index, "delta": delta, "logprobs": found, "finish_reason": finish_reason(reason)}

    def _logprobs(self, found: list[TokenLogprob] | None) -> dict[str, Any] | None:
        if found is None:
            return None

        def one(token: int, logprob: float) -> dict[str, Any]:
            text = self.text(token)
            return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

        return {
            "content": [{**one(each.token, each.logprob), "top_logprobs": [one(*pair) for pair in each.top]} for each in found],
            "refusal": None,
        }


@dataclass
class CompletionForm(_Form):
    """Bodies of /v1/completions."""

    kind = "text_completion"
    offsets: dict[int, int] = field(default_factory=dict)

    def choice(self, index: int, result: GenerationResult) -> dict[str, Any]:
        """A whole answer."""
        return self.delta(index, result.text, result.logprobs, result.finish_reason)

    def delta(self, index: int, text: str, logprobs: list[TokenLogprob] | None, reason: str | None) -> dict[str, Any]:
        """What a chunk brought."""
        found = self._logprobs(index, logprobs)
        return {"index": index, "text": text, "logprobs": found, "finish_reason": finish_reason(reason)}

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
