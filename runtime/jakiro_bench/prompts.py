"""Prompts file: JSON lines, a conversation or a single prompt each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jakiro_runtime.errors import UsageError


@dataclass(frozen=True)
class Prompt:
    """What one conversation asks, turn by turn.

    benchmark: where it is from, to select by and to group by; "" where the file does not say
    """

    id: str
    turns: tuple[str, ...]
    benchmark: str = ""
    category: str = ""


def read_prompts(path: Path) -> list[Prompt]:
    """Read JSON lines with `turns` (texts of one conversation) or `prompt` (one text); `id`, `benchmark`, `category` may follow.

    Raises:
        UsageError: the file is missing, empty or not text, or a line is not such an object; says which line
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"There is no prompts file at {path}; give JSON lines with `turns` or `prompt`.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text ({error}); give JSON lines with `turns` or `prompt`.") from error
    prompts = [_parse(line, f"{path}, line {number}", number) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f"{path} holds no prompts; give JSON lines with `turns` or `prompt`.")
    return prompts


def select(prompts: Sequence[Prompt], benchmark: str | None, limit: int | None) -> list[Prompt]:
    """The prompts of one benchmark, and the first `limit` of them.

    Raises:
        UsageError: the file has no such benchmark
    """
    chosen = [prompt for prompt in prompts if benchmark is None or prompt.benchmark == benchmark]
    if not chosen:
        known = ", ".join(sorted({prompt.benchmark for prompt in prompts} - {""})) or "none"
        raise UsageError(f"The prompts file has no benchmark {benchmark!r}; it has: {known}.")
    return chosen[:limit]


def _parse(line: str, where: str, number: int) -> Prompt:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON ({error}); give one object a line.") from error
    turns = _turns(data) if isinstance(data, dict) else None
    if turns is None:
        raise UsageError(f"{where} has neither `turns` (a list of texts) nor `prompt` (a text), none of them empty.")
    return Prompt(str(data.get("id", f"line-{number}")), turns, str(data.get("benchmark") or ""), str(data.get("category") or ""))


def _turns(data: dict[str, Any]) -> tuple[str, ...] | None:
    turns = data["turns"] if "turns" in data else [data.get("prompt")]
    if isinstance(turns, list) and turns and all(isinstance(turn, str) and turn.strip() for turn in turns):
        return tuple(turns)
    return None
