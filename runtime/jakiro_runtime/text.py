"""Tokens to text as they come, without a piece that would have to be taken back."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """Decodes an answer token by token; a character that is not complete yet is held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._given = 0

    def push(self, tokens: list[int]) -> str:
        """The text that these tokens complete."""
        self._tokens += tokens
        text = "".join(self._stream.step(self._tokenizer, token) or "" for token in tokens)
        self._given += len(text)
        return text

    def flush(self) -> str:
        """What was held back: an answer may end in the middle of a character."""
        rest = self._tokenizer.decode(self._tokens, skip_special_tokens=True)[self._given :]
        self._given += len(rest)
        return rest
