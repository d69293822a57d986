"""Tool calls: how families of models write them, read from an answer as it comes, and demanded by a grammar."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from jakiro_runtime.text.detokenizer import overlap
from jakiro_runtime.text.stream import special_tokens

_NAMED_FIRST = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_SEPARATORS = " \n\t;,[]"
_LONGEST_HEAD = 1000  # characters up to the arguments; a call with more is read when it is complete
_BEFORE_BRACE = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*$")


class CallStart(NamedTuple):
    """A call of a function begins. number: which call of the answer, from 0."""

    number: int
    id: str
    name: str


class CallArguments(NamedTuple):
    """More of a call's arguments, JSON as the model wrote it."""

    number: int
    text: str


Piece = str | CallStart | CallArguments
"""What an answer brought: text, or a part of a call."""


@dataclass(frozen=True)
class ToolFormat:
    """How a family writes calls: objects {"name": ..., KEY: {...}}.

    opening, closing: around each call, or before all of them; "": an answer that begins with a brace is a call
    key: what it calls the arguments
    one, several: a call, and one or more, in a grammar where `call` is an object with what stands around each
    bare: the name stands before the arguments, outside of them
    """

    opening: str
    closing: str
    key: str
    one: str
    several: str
    bare: bool = False


MARKERS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<tool_call>", "</tool_call>")
"""Special tokens that the text of an answer has to show where it may hold calls."""

_HERMES = ToolFormat("<tool_call>", "</tool_call>", "arguments", "call", 'call ("\\n" call)*')
_LLAMA = ToolFormat("", "", "parameters", "call", 'call ("; " call)*')
_MISTRAL = ToolFormat("[TOOL_CALLS]", "", "arguments", 'opening "[" call "]"', 'opening "[" call (", " call)* "]"')
_MISTRAL_BARE = ToolFormat("[TOOL_CALLS]", "", "arguments", "call", "call+", bare=True)


def tool_format(template: str) -> ToolFormat | None:
    """How a chat template says that calls are written; None where it has no tools, or in a form that is not read here."""
    if "tools" not in template:
        return None
    if "[TOOL_CALLS]" in template:
        return _MISTRAL_BARE if "[ARGS]" in template else _MISTRAL
    if "<tool_call>" in template:  # some families write XML in these
        return None if "<function=" in template or "<arg_key>" in template else _HERMES
    if "<|python_tag|>" in template or ('"parameters"' in template and "ipython" in template):
        return _LLAMA
    return None


class _ObjectEnd:
    """Finds where a JSON object ends, of which more and more comes."""

    def __init__(self) -> None:
        self._depth, self._string, self._escaped = 0, False, False

    def find(self, text: str) -> int | None:
        """How many characters of this next text belong to the object, where it ends in it."""
        for place, character in enumerate(text):
            if self._string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._string = False
            elif character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place + 1
        return None


class _Call:
    """One call while it comes, from its brace on."""

    def __init__(self, number: int, name: str | None) -> None:
        self.raw, self.started = "", False
        self._number, self._end, self._name = number, _ObjectEnd(), name
        self._value: _ObjectEnd | None = None  # of the arguments, while they come

    def push(self, text: str, known: Collection[str] | None) -> tuple[list[Piece], str | None]:
        """What more text brings, and what follows the call, once it is complete.

        known: names that make a call one; None: any
        """
        end = self._end.find(text)
        new = text if end is None else text[:end]
        before, self.raw = len(self.raw), self.raw + new
        pieces = self._begin(known) if not self.started else []
        if pieces:
            pieces += self._arguments(self.raw[self._from :])
        elif self._value is not None:
            pieces += self._arguments(self.raw[before:])
        if end is None:
            return pieces, None
        return pieces or ([] if self.started else self._whole(known)), text[end:]

    def _begin(self, known: Collection[str] | None) -> list[Piece]:
        name, self._from = self._name, 0
        if name is None and len(self.raw) < _LONGEST_HEAD and (found := _NAMED_FIRST.match(self.raw)):
            with contextlib.suppress(ValueError):  # an escape that is none
                name, self._from = str(json.loads(found[1])), found.end()
        if name is None or (known is not None and name not in known):
            return []
        self._value = _ObjectEnd()
        return [self._start(name)]

    def _start(self, name: str) -> CallStart:
        self.started = True
        return CallStart(self._number, call_id(), name)

    def _arguments(self, text: str) -> list[Piece]:
        if self._value is None or not text:
            return []
        end = self._value.find(text)
        if end is not None:
            self._value = None
        return [CallArguments(self._number, text[:end])]

    def _whole(self, known: Collection[str] | None) -> list[Piece]:
        """A complete object as a call, whatever the order of its keys; nothing where it is none."""
        try:
            given = json.loads(self.raw)
        except (ValueError, RecursionError):
            return []
        name = given.get("name") if isinstance(given, dict) else None
        if not isinstance(name, str) or (known is not None and name not in known):
            return []
        arguments = given.get("arguments", given.get("parameters"))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        return [self._start(name), CallArguments(self._number, text)]


class AnswerReader:
    """Reads an answer as it comes. calls: how many were read. An answer without tools is text alone."""

    calls = 0

    def push(self, text: str) -> list[Piece]:
        """What more of the answer brings."""
        return [text] if text else []

    def finish(self) -> list[Piece]:
        """What was held back, at the end."""
        return []


class ToolCallReader(AnswerReader):
    """Reads an answer as it comes: text, and calls in a family's form. What only looked like a call is text.

    names: functions that there are; an answer without a marker is a call where it names one of them
    most: calls that are read; what follows is dropped
    """

    def __init__(self, form: ToolFormat, names: Collection[str], most: int | None = None) -> None:
        self._form, self._most = form, most
        self._known = None if form.opening else frozenset(names)
        self._held, self._trim = "", False
        self._call: _Call | None = None
        self._state = "text" if form.opening else "start"

    def push(self, text: str) -> list[Piece]:
        self._held += text
        return list(self._read())

    def finish(self) -> list[Piece]:
        rest, self._held = self._held, ""
        if self._call is not None and not self._call.started:
            return [self._form.opening + self._call.raw + rest]
        return [rest] if rest and (self._state in ("text", "start") or rest.strip(_SEPARATORS)) else []

    def _read(self) -> Iterator[Piece]:
        while self._held:
            before = self._state, len(self._held)
            yield from getattr(self, f"_read_{self._state}")()
            if (self._state, len(self._held)) == before:
                return

    def _read_start(self) -> Iterator[Piece]:
        """An answer without a marker: a brace decides."""
        text = self._held.lstrip()
        tag = "<|python_tag|>"
        if text.startswith("{") or text.startswith(tag):
            self._held, self._state = text.removeprefix(tag), "between"
        elif text and not tag.startswith(text):
            self._state = "text"
        yield from ()

    def _read_text(self) -> Iterator[Piece]:
        opening = self._form.opening
        place = self._held.find(opening) if opening else -1
        keep = overlap(self._held, opening) if opening else 0
        text = self._held[:place] if place >= 0 else self._held[: len(self._held) - keep]
        self._held = self._held[place + len(opening) :] if place >= 0 else self._held[len(self._held) - keep :]
        if place >= 0:
            self._state = "between"
        if self._trim:  # white space after a call is not text, in whatever pieces it comes
            text = text.lstrip()
        if text:
            self._trim = False
            yield text

    def _read_between(self) -> Iterator[Piece]:
        """After a marker, or after a call: separators, the closing marker, and the next call's brace."""
        closing, opening = self._form.closing, self._form.opening
        if closing and (place := self._held.find(closing)) >= 0 and "{" not in self._held[:place]:
            if self._held[:place].strip():  # no object at all
                yield opening + self._held[: place + len(closing)]
            self._held, self._state, self._trim = self._held[place + len(closing) :], "text", self.calls > 0
            return
        brace = self._held.find("{")
        if brace >= 0:
            head = self._held[:brace].replace(opening, "") if opening else self._held[:brace]
            name = found[1] if self._form.bare and (found := _BEFORE_BRACE.search(head)) else None
            self._held, self._state, self._call = self._held[brace:], "call", _Call(self.calls, name)
        elif not opening and self._held.strip(_SEPARATORS):
            self._state = "text"

    def _read_call(self) -> Iterator[Piece]:
        call = self._call
        if call is None:
            return
        pieces, rest = call.push(self._held, self._known)
        self._held = rest or ""
        if self._most is None or self.calls < self._most:
            yield from pieces
        if rest is None:
            return
        if call.started:
            self.calls += 1
        else:
            yield self._form.opening + call.raw
        self._call, self._state = None, "between" if call.started else "text"


def call_id() -> str:
    """A new call's name: nine letters and digits, as Mistral's templates demand."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(9))


def calls_grammar(
    form: ToolFormat, tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, several: bool, otherwise: str | None = None
) -> str:
    """A grammar, in llguidance's Lark, of answers that call tools.

    Args:
        tools: functions that may be called, {"name", "parameters"} each
        several: more than one call may be made
        otherwise: a JSON schema, as text, that an answer may follow instead
    """
    ids = {content: number for number, content in special_tokens(tokenizer).items()}

    def terminal(text: str) -> str:
        return f"<[{ids[text]}]>" if text in ids else json.dumps(text)

    rules = [f"opening: {terminal(form.opening)}"] if form.opening else []
    calls = [f"call{number}" for number in range(len(tools))]
    for number, tool in enumerate(tools):
        parameters = dict(tool.get("parameters") or {"type": "object"})
        shared = {name: parameters.pop(name) for name in ("$defs", "definitions") if name in parameters}
        style = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
        if form.bare:
            rules.append(f"object{number}: %json {json.dumps({**parameters, **shared, **style})}")
            rules.append(f"call{number}: opening {json.dumps(tool['name'])} {terminal('[ARGS]')} object{number}")
            continue
        properties = {"name": {"const": tool["name"]}, form.key: parameters}
        whole = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
        rules.append(f"object{number}: %json {json.dumps({**whole, **shared, **style})}")
        around = f'opening "\\n" object{number} "\\n" {terminal(form.closing)}' if form.closing else f"object{number}"
        rules.append(f"call{number}: {around}")
    rules.append(f"call: {' | '.join(calls)}")
    rules.append(f"calls: {form.several if several else form.one}")
    start = "calls"
    if otherwise is not None:
        rules.append(f"other: %json {otherwise}")
        start = "calls | other"
    return "\n".join([f"start: {start}", *rules])
