"""Lists of whole numbers on a command line, between commas."""

from __future__ import annotations

from typing import Any

import click


class Numbers(click.ParamType):
    """`N,N,..`: a tuple of whole numbers; empty text is none of them.

    Args:
        what: the list in words, for the sentence that refuses another
        least, most: what a number may be
    """

    name = "n,n,.."

    def __init__(self, what: str, least: int, most: int) -> None:
        self._what, self._least, self._most = what, least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not all(part.isascii() and part.isdecimal() and self._least <= int(part) <= self._most for part in parts):
            self.fail(f"{value!r} is no {self._what}", param, ctx)
        return tuple(map(int, parts))
