"""Tokens to text as they come, without a piece that would have to be taken back."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """Decodes an answer token by token. Held back: an incomplete character, and what may become a stop string.

    stops: the answer ends where one of these appears; it is not part of the text
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=True)
        self._stops = [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._decoded = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token completes; sets `stopped` where it completes a stop string."""
        self._tokens.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._decoded += len(piece)
        return self._release(piece)

    def flush(self) -> str:
        """What was held back, at the end of an answer: it may end in the middle of a character."""
        if self.stopped:
            return ""
        rest = self._tokenizer.decode(self._tokens, skip_special_tokens=True)[self._decoded :]
        self._decoded += len(rest)
        piece = self._release(rest)
        if not self.stopped:
            piece, self._held = piece + self._held, ""
        return piece

    def _release(self, piece: str) -> str:
        if not self._stops:
            return piece
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
