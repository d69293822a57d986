"""Encoder: text to token ids, with the special tokens of a user's text as special or as the plain text they are."""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.format.files import read_text
from jakiro_runtime.format.manifest import EXPORT_AGAIN
from jakiro_runtime.text.stream import special_tokens

_LARGEST = 1 << 29  # bytes of a tokenizer.json
_MOST_TOKENS = 1 << 24
Span = tuple[int, int]


class TextEncoder:
    """A tokenizer as prompts need it: nothing cut, nothing padded. Safe to use from several threads.

    Special tokens that a user wrote are found where the tokenizer finds them, and their ids are replaced by those of the same
    characters as plain text; everything around them stays as it is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._lock = threading.Lock()  # how special tokens are read is a state of the tokenizer

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of text.

        Args:
            add_special: with what the tokenizer puts around a bare prompt, such as a token that begins it
            parse_special: special tokens that the text spells are special; else they are plain text

        Raises:
            UsageError: the text holds half a character (a lone surrogate), which no tokenizer takes
        """
        encoding = self._encode(text, add_special)
        return list(encoding.ids) if parse_special else self._with_plain(text, encoding, [(0, len(text))])

    def encode_rendered(self, messages: Any, render: Callable[[Any], str]) -> list[int]:
        """Token ids of a template's text: its own special tokens are special, those in `messages` are plain text.

        Args:
            messages: strings, in lists and objects, that users may have written
            render: the text of a template for them
        """
        texts = list(_strings(messages))
        spelt = {text: spans for text in texts if (spans := self._special_spans(text))}
        if not spelt:
            return self.encode(render(messages), add_special=False)
        begin, end = _unused(texts)

        def marked(text: str) -> str:
            parts, place = [], 0
            for start, stop in spelt.get(text, ()):
                parts += [text[place:start], begin, text[start:stop], end]
                place = stop
            return "".join([*parts, text[place:]])

        literals = {text[start:stop] for text, spans in spelt.items() for start, stop in spans}
        text, plain = _unmarked(render(_map_strings(messages, marked)), begin, end, literals)
        return self._with_plain(text, self._encode(text, add_special=False), plain)

    def _encode(self, text: str, add_special: bool, split_special: bool = False) -> Encoding:
        with self._lock:
            self.tokenizer.encode_special_tokens = split_special
            try:
                return self.tokenizer.encode(text, add_special_tokens=add_special)
            except BaseException as error:  # the library raises Exception, or a panic that is none
                if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                    raise
                try:
                    text.encode()
                except (UnicodeEncodeError, AttributeError):
                    raise UsageError(
                        "The prompt is not valid Unicode text (UTF-8); give text without broken characters."
                    ) from None
                raise EngineError(f"The engine's tokenizer cannot encode this prompt: {error}; {EXPORT_AGAIN}.") from error
            finally:
                self.tokenizer.encode_special_tokens = False

    def _special_spans(self, text: str) -> list[Span]:
        """Where the tokenizer reads special tokens in a text."""
        return [span for _, span in self._found(text, self._encode(text, add_special=False))]

    def _found(self, text: str, encoding: Encoding) -> list[tuple[int, Span]]:
        """The special tokens that a text spells: places among the ids, and in the text."""
        found = []
        continued = cache(self._continued)
        numbered = enumerate(zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True))
        for place, (number, (start, stop), added) in numbered:
            if number not in self._special or added:  # one that the tokenizer added stands for no text
                continue
            literal = text[start:stop]
            # the unknown token stands for characters that the model does not know
            if self._special[number] in literal or number not in continued(literal):
                found.append((place, (start, stop)))
        return found

    def _with_plain(self, text: str, encoding: Encoding, plain: Sequence[Span]) -> list[int]:
        """The ids of an encoding, where special tokens that overlap one of these spans are plain text."""
        ids: list[int] = []
        before, done = list(encoding.ids), 0  # each look at an encoding's ids makes a new list
        as_text = cache(self._plain)
        for place, (start, stop) in self._found(text, encoding):
            after = bisect_right(plain, start, key=itemgetter(1))  # spans are in order: the first that ends after `start`
            if after < len(plain) and plain[after][0] < stop:
                ids += before[done:place]
                ids += as_text(text[start:stop], before[place])
                done = place + 1
            if len(ids) > _MOST_TOKENS:  # only a tokenizer that repeats what it reads gets here
                raise EngineError(f"The engine's tokenizer makes more than {_MOST_TOKENS} tokens of this prompt; {EXPORT_AGAIN}.")
        return ids + before[done:]

    def _plain(self, literal: str, special: int) -> list[int]:
        """Ids of a special token's characters as text in the middle of a prompt."""
        ids = self._continued(literal)
        if special in ids and len(literal) > 1:  # a model whose own vocabulary spells it: character by character
            ids = [number for character in literal for number in self._continued(character)]
        if special in ids:
            raise UsageError(
                f"The prompt holds {literal!r}, which this tokenizer reads as a special token only (--parse-special)."
            )
        return ids

    def _continued(self, text: str) -> list[int]:
        # after a newline, so that nothing is put before it as before a text's first word
        newline, ids = (list(self._encode(each, False, split_special=True).ids) for each in ("\n", "\n" + text))
        return ids[len(newline) :] if ids[: len(newline)] == newline else list(self._encode(text, False, split_special=True).ids)


def read_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer.json, which neither cuts nor pads whatever it says. Raises EngineError where it is damaged."""
    try:
        tokenizer = Tokenizer.from_str(read_text(file, _LARGEST))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    except BaseException as error:  # the tokenizers library raises plain Exception, and a panic that is none
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise EngineError(f"{file} cannot be read: {error}; {EXPORT_AGAIN}.") from error


def _strings(value: Any) -> Any:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, function): _map_strings(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, function) for item in value]
    return value


def _unused(texts: Sequence[str]) -> tuple[str, str]:
    """Two characters for private use that no text holds."""
    used = set().union(*texts)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    return next(free), next(free)


def _unmarked(text: str, begin: str, end: str, literals: set[str]) -> tuple[str, list[Span]]:
    """A text without its marks, and what stood between a pair of them.

    A template may have cut a marked text: a mark alone is an empty span, across which no special token is read either.
    """
    for mark in (begin, end):  # tojson may have escaped them
        text = text.replace(_escaped(mark), mark)
    parts, spans, length = [], [], 0
    pattern = f"{begin}({'|'.join(map(re.escape, sorted(literals, key=len, reverse=True)))}){end}|[{begin}{end}]"
    place = 0
    for found in re.finditer(pattern, text):
        parts += [text[place : found.start()], found.group(1) or ""]
        start = length + found.start() - place
        length = start + len(parts[-1])
        spans.append((start, length))
        place = found.end()
    return "".join([*parts, text[place:]]), spans


def _escaped(mark: str) -> str:
    code = ord(mark) - 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
