"""Engines that say a given text: a rule leaves one token for each place of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient
from tokenizers import AddedToken, Tokenizer

from jakiro_runtime import Engine
from jakiro_runtime.decoding.sequence import TokenSequence
from jakiro_runtime.sampling import Constraint
from jakiro_runtime.text.chat import ChatTemplate
from jakiro_serve import service
from jakiro_serve.app import make_app
from jakiro_serve.service import ServerOptions


class _Script(Constraint):
    def __init__(self, tokens: Sequence[int], vocab: int) -> None:
        self._tokens, self._vocab, self._place = list(tokens), vocab, 0

    def start(self) -> Constraint:  # a grammar, too
        return self

    def allowed(self) -> np.ndarray:
        return np.arange(self._vocab) == self._tokens[self._place]

    def advance(self, token: int) -> None:
        self._place = min(self._place + 1, len(self._tokens) - 1)

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        rest = self._tokens[self._place :]
        return next(
            (n for n, pair in enumerate(zip(tokens, rest, strict=False)) if pair[0] != pair[1]), min(len(tokens), len(rest))
        )


def with_template(engine: Engine, template: str, special: Sequence[str] = ()) -> Engine:
    """The engine with another chat template, and more special tokens."""
    tokenizer = Tokenizer.from_str(engine.bundle.tokenizer.to_str())
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    return Engine(engine.bundle.replace(template=ChatTemplate(template, {}), tokenizer=tokenizer))


def say(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """From here on, every answer of a server in this process is this text; special tokens as they are spelled."""

    def scripted(bundle: Any, ids: Any, most: int, way: Any, stops: Any, grammar: Any, *more: Any) -> TokenSequence:
        tokens = [*bundle.tokenizer.encode(text, add_special_tokens=False).ids, min(bundle.eos_token_ids)]
        return TokenSequence(bundle, ids, most, way, stops, _Script(tokens, bundle.manifest.model.vocab_size), *more)

    monkeypatch.setattr(service, "TokenSequence", scripted)


@contextmanager
def client_of(engine: Engine, **options: Any) -> Any:
    """OpenAI's client of a server in this process."""
    with TestClient(make_app(engine, ServerOptions(**options))) as client:
        yield openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0)
