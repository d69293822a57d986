"""Conversation files: the text that a head is trained on.

A JSON object a line: `prompt` and `response`, token ids of the target's tokenizer. The prompt ends with the assistant header.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click


def read(path: Path, vocab: int) -> Iterator[tuple[list[int], int]]:
    """The conversations of a `.jsonl` or `.jsonl.gz` file, as token ids, and how many of these are the prompt.

    Raises:
        click.ClickException: the file is damaged, a line is not a conversation, or holds a token the target does not have.
    """
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for number, line in _numbered(path, lines):
            try:
                record = json.loads(line)
                tokens = [int(token) for token in (*record["prompt"], *record["response"])]
            except (ValueError, KeyError, TypeError) as error:
                raise click.ClickException(
                    f'{path}, line {number}: expected {{"prompt": [ids], "response": [ids]}} ({type(error).__name__}).'
                ) from error
            if not all(0 <= token < vocab for token in tokens):
                raise click.ClickException(f"{path}, line {number}: a token outside the target's vocabulary of {vocab}.")
            yield tokens, len(record["prompt"])


def _numbered(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers. Raises click.ClickException where the file is cut off or not what its name says."""
    try:
        yield from enumerate(lines, 1)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise click.ClickException(
            f"{path} cannot be read to its end ({error}); expected JSON lines, gzipped in a .gz."
        ) from error


def headers(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What precedes a user's words and what precedes the answer, as token ids.

    Raises:
        click.ClickException: the tokenizer has no chat template to take them from.
    """
    mark = "\u241f"
    if not tokenizer.chat_template:
        raise click.ClickException("The target has no chat template, so it cannot talk to itself: give conversations by --data.")
    text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True)
    before, after = text.split(mark)
    return tokenizer.encode(before, add_special_tokens=False), tokenizer.encode(after, add_special_tokens=False)
