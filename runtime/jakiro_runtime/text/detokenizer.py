"""Detokenizer: a tokenizer's decoder as a pipeline that gives text as soon as no later token can change it.

The decoders of the tokenizers library work on all tokens of an answer at once. Here each of them is a stage that takes one token
string after the other. What all stages gave, in order, is what `Tokenizer.decode` gives for the same ids.
"""

from __future__ import annotations

import codecs
import copy
import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders


class Detokenizer:
    """Decodes one answer, token string by token string.

    Special tokens are left out, as by `Tokenizer.decode(ids, skip_special_tokens=True)`. A decoder that cannot be followed token
    by token (a regular expression over the whole text, CTC) gives all its text at the end.

    Args:
        tokenizer: whose decoder to follow
        special: the special tokens' strings
    """

    def __init__(self, tokenizer: Tokenizer, special: frozenset[str]) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._stages = _pipeline(tokenizer)
        self._bytes = next((stage for stage in self._stages or () if isinstance(stage, _ByteFallback)), None)
        self._ids: list[int] = []  # only where the whole answer is decoded at once

    def push(self, token: int) -> str:
        """The text that this token settles."""
        if self._stages is None:
            self._ids.append(token)
            return ""
        content = self._tokenizer.id_to_token(token)
        if content is None or content in self._special:
            return ""
        pieces = [content]
        for stage in self._stages:
            pieces = [given for piece in pieces for given in stage.push(piece)]
        return "".join(pieces)

    def finish(self) -> str:
        """The rest of the text. Nothing may be pushed afterwards."""
        if self._stages is None:
            return _decode_whole(self._tokenizer, self._ids)
        text: list[str] = []
        for number, stage in enumerate(self._stages):
            pieces = stage.finish()
            for later in self._stages[number + 1 :]:
                pieces = [given for piece in pieces for given in later.push(piece)]
            text += pieces
        return "".join(text)

    def rest(self) -> str:
        """What `finish` would give now; tokens may follow."""
        other = copy.copy(self)
        other._stages = copy.deepcopy(self._stages)
        return other.finish()

    def waiting(self) -> str:
        """The text of whole characters that are held back only because later bytes could make their run invalid."""
        return self.rest() if self._bytes is not None and self._bytes.is_text() else ""


class _Stage:
    """One decoder. Each call gives token strings for the next one; after `Fuse` they are pieces of one string."""

    def push(self, token: str) -> list[str]:
        raise NotImplementedError

    def finish(self) -> list[str]:
        return []


class _Each(_Stage):
    """A function of a token string, and of whether it is the first one."""

    def __init__(self, function: Callable[[str, bool], str]) -> None:
        self._function, self._first = function, True

    def push(self, token: str) -> list[str]:
        first, self._first = self._first, False
        return [self._function(token, first)]


class _ByteFallback(_Stage):
    """Runs of tokens like <0xE2>: a run that is UTF-8 is its text, any other one replacement character a byte.

    So the last byte of a run decides over all of it, and it is held back until then.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, token: str) -> list[str]:
        value = _byte(token)
        if value is not None:
            self._run.append(value)
            return []
        return [*self.finish(), token]

    def finish(self) -> list[str]:
        run, self._run = bytes(self._run), bytearray()
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)

    def is_text(self) -> bool:
        """Whether there is a run, and it is UTF-8 so far."""
        try:
            return bool(self._run.decode())
        except UnicodeDecodeError:
            return False


def _byte(token: str) -> int | None:
    # as Rust's u8::from_str_radix reads it, which takes a sign
    if len(token) != 6 or not token.isascii() or not token.startswith("<0x") or token[5] != ">":
        return None
    digits = token[4:5] if token[3] == "+" else token[3:5]
    return int(digits, 16) if all(digit in "0123456789abcdefABCDEF" for digit in digits) else None


class _ByteLevel(_Stage):
    """Characters that stand for bytes, as in GPT-2; a token that holds any other character stands for its own UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> list[str]:
        try:
            data = bytes([_BYTES[character] for character in token])
        except KeyError:
            data = token.encode()
        return [self._utf8.decode(data)]

    def finish(self) -> list[str]:
        return [self._utf8.decode(b"", True)]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table: printable bytes are themselves, the others the characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + number): byte for number, byte in enumerate(others)}}


_BYTES = _byte_alphabet()


class _Suffix(_Stage):
    """A mark at a word's end becomes a space, but not in the last token."""

    def __init__(self, suffix: str) -> None:
        self._suffix, self._last = suffix, None

    _last: str | None

    def push(self, token: str) -> list[str]:
        last, self._last = self._last, token
        return [] if last is None else [last.replace(self._suffix, " ")]

    def finish(self) -> list[str]:
        return [] if self._last is None else [self._last.replace(self._suffix, "")]


class _FusedReplace(_Stage):
    """Replace in the whole text: the beginning of a match at the end is held back."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content, self._held = pattern, content, ""

    def push(self, token: str) -> list[str]:
        *done, text = (self._held + token).split(self._pattern)
        keep = overlap(text, self._pattern)
        self._held = text[len(text) - keep :]
        return ["".join(part + self._content for part in done) + text[: len(text) - keep]]

    def finish(self) -> list[str]:
        return [self._held]


class _FusedStrip(_Stage):
    """Drop up to `start` and `stop` of a character from the ends of the whole text."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content, self._start, self._stop, self._held = content, start, stop, ""

    def push(self, token: str) -> list[str]:
        while self._start and token:
            if token[0] != self._content:
                self._start = 0
                break
            token, self._start = token[1:], self._start - 1
        text = self._held + token
        keep = min(self._stop, len(text) - len(text.rstrip(self._content)))
        self._held = text[len(text) - keep :]
        return [text[: len(text) - keep]]


def _strip(token: str, content: str, start: int, stop: int) -> str:
    begin = min(start, len(token) - len(token.lstrip(content)))
    return token[begin : max(begin, len(token) - min(stop, len(token) - len(token.rstrip(content))))]


def _pipeline(tokenizer: Tokenizer) -> list[_Stage] | None:
    """The stages of a tokenizer's decoder; None where one of them needs the whole answer."""
    if tokenizer.decoder is None:
        return [_Each(lambda token, first: token if first else " " + token)]
    try:
        state = json.loads(tokenizer.decoder.__getstate__())
    except Exception:  # written in Python
        return None
    stages: list[_Stage] = []
    fused = False
    for each in state["decoders"] if state["type"] == "Sequence" else [state]:
        if each["type"] == "Fuse":
            fused = True
            continue
        stage = _stage(each, fused)
        if stage is None:
            return None
        stages.append(stage)
        fused |= isinstance(stage, _ByteLevel)
    return stages


def _stage(state: dict[str, Any], fused: bool) -> _Stage | None:
    kind = state["type"]
    if kind == "Replace":
        pattern, content = state["pattern"].get("String"), state["content"]
        if not pattern:
            return None
        return _FusedReplace(pattern, content) if fused else _Each(lambda token, _: token.replace(pattern, content))
    if kind == "Strip":
        ends = state["content"], state["start"], state["stop"]
        return _FusedStrip(*ends) if fused else _Each(lambda token, _: _strip(token, *ends))
    if fused:
        return None
    if kind == "ByteFallback":
        return _ByteFallback()
    if kind == "ByteLevel":
        return _ByteLevel()
    if kind == "BPEDecoder" and state["suffix"]:
        return _Suffix(state["suffix"])
    if kind == "Metaspace":
        mark, begin = state["replacement"], " " if state["prepend_scheme"] == "never" else ""
        return _Each(lambda token, first: token.replace(mark, begin if first else " "))
    if kind == "WordPiece":
        words = decoders.WordPiece(state["prefix"], state["cleanup"])
        # what comes after a first token, which is itself
        return _Each(lambda token, first: words.decode([token]) if first else words.decode(["-", token])[1:])
    return None


def _decode_whole(tokenizer: Tokenizer, ids: list[int]) -> str:
    try:
        return tokenizer.decode(ids, skip_special_tokens=True)
    except BaseException as error:  # a decoder's panic is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return ""


def overlap(text: str, pattern: str) -> int:
    """The length of the longest end of `text` that `pattern` begins with, short of the whole of it."""
    return next((n for n in range(min(len(text), len(pattern) - 1), 0, -1) if text.endswith(pattern[:n])), 0)
