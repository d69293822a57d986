"""Typed reading of JSON objects: dataclasses from files that somebody else may have written.

Every value is checked against its field's annotation before anything uses it; an error names the field.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_LARGEST = 1 << 53  # what a JSON number holds exactly
_WORDS = {
    int: "a whole number of 0 or more",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


class FieldError(ValueError):
    """A value that does not fit: the message names the field, what was found and what was expected."""


def read_record(kind: type[Record], data: Any, where: str = "") -> Record:
    """An instance of a dataclass from a parsed JSON object. Keys that it has no field for are left out.

    Fields may be int (0 or more), float (finite), str, bool, dict, list, dataclasses, `list[...]` and `dict[str, ...]` of
    these, and `... | None`. `metadata={"least": n, "most": n}` bounds a number.

    Raises:
        FieldError: a field is missing or does not fit
    """
    if not isinstance(data, Mapping):
        raise _wrong(where or kind.__name__, data, "an object")
    hints, values = _hints(kind), {}  # type: ignore[arg-type]
    for each in fields(kind):  # type: ignore[arg-type]
        name = f"{where}.{each.name}" if where else each.name
        if each.name in data:
            values[each.name] = _read(hints[each.name], data[each.name], name, each.metadata)
        elif each.default is MISSING and each.default_factory is MISSING:
            raise FieldError(f"the field {name} is missing")
    return kind(**values)


def surplus(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a dataclass has no field for."""
    return {key: value for key, value in data.items() if key not in _hints(kind)}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(hint: Any, value: Any, name: str, bounds: Mapping[str, Any]) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _read(next(each for each in arguments if each is not type(None)), value, name, bounds)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(name, value, _WORDS[list])
        return [_read(arguments[0], each, f"{name}[{place}]", bounds) for place, each in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(name, value, _WORDS[dict])
        return {key: _read(arguments[1], each, f"{name}.{key}", bounds) for key, each in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        return read_record(hint, value, name)
    if hint is Any:
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _wrong(name, value, _WORDS[float])
        return _bounded(float(value), name, bounds)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise _wrong(name, value, _WORDS[hint])
    return _bounded(value, name, {"least": 0, "most": _LARGEST, **bounds}) if hint is int else value


def _bounded(value: Any, name: str, bounds: Mapping[str, Any]) -> Any:
    least, most = bounds.get("least", -math.inf), bounds.get("most", math.inf)
    if not least <= value <= most:
        raise _wrong(name, value, f"{least} to {most}")
    return value


def _wrong(name: str, value: Any, expected: str) -> FieldError:
    shown = repr(value)
    return FieldError(f"the field {name} is {shown if len(shown) <= 40 else shown[:37] + '...'}; {expected} was expected")
