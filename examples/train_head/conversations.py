"""Conversations a target has with itself: the text its head is trained on.

A JSON object a line: `prompt` and `response`, token ids of the target's tokenizer. The prompt ends with the assistant header.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn


def read(path: Path, vocab: int) -> Iterator[list[int]]:
    """The conversations of a `.jsonl` or `.jsonl.gz` file, as token ids.

    Raises:
        click.ClickException: a line is not a conversation, or holds a token the target does not have.
    """
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                tokens = [int(token) for token in (*record["prompt"], *record["response"])]
            except (ValueError, KeyError, TypeError) as error:
                raise click.ClickException(
                    f'{path}, line {number}: expected {{"prompt": [ids], "response": [ids]}} ({type(error).__name__}).'
                ) from error
            if not all(0 <= token < vocab for token in tokens):
                raise click.ClickException(f"{path}, line {number}: a token outside the target's vocabulary of {vocab}.")
            yield tokens


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


@torch.inference_mode()
def generate(
    model: nn.Module,
    tokenizer: Any,
    eos: list[int],
    file: Path,
    tokens: int,
    seed: int,
    progress: Callable[[int], None],
    batch: int = 48,
    question_tokens: int = 64,
    answer_tokens: int = 224,
) -> None:
    """Let the target ask and answer until `file` holds `tokens` tokens; what the file already holds counts.

    The question is sampled after the user header (temperature 1, top-p 0.95). Three answers in four are greedy, as the head is
    asked to guess greedy text most of the time; the rest is sampled at temperature 0.8.
    """
    before, after = headers(tokenizer)
    have, calls = 0, 0
    if file.exists():
        for line in file.read_text().splitlines():
            record = json.loads(line)
            have += len(record["prompt"]) + len(record["response"])
            calls = record["call"] + 1
    progress(have)
    common = {"eos_token_id": eos, "pad_token_id": eos[0]}
    while have < tokens:
        torch.manual_seed(seed + calls)
        start = torch.tensor([before]).repeat(batch, 1)
        asked = model.generate(  # type: ignore[operator]
            start, do_sample=True, temperature=1.0, top_p=0.95, top_k=0, max_new_tokens=question_tokens, **common
        )[:, len(before) :].tolist()
        prompts = [before + _until(question, eos)[0] + after for question in asked]
        longest = max(map(len, prompts))
        padded = torch.tensor([[eos[0]] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        how: dict[str, Any] = {"do_sample": False} if calls % 4 else {"do_sample": True, "temperature": 0.8, "top_k": 0}
        answers = model.generate(  # type: ignore[operator]
            padded, attention_mask=mask, max_new_tokens=answer_tokens, **how, **common
        )[:, longest:].tolist()
        with file.open("a") as out:
            lines = []
            for prompt, answer in zip(prompts, answers, strict=True):
                words, ended = _until(answer, eos)
                response = words + ended
                lines.append(json.dumps({"prompt": prompt, "response": response, "call": calls}))
                have += len(prompt) + len(response)
            out.write("\n".join(lines) + "\n")
        calls += 1
        progress(have)


def _until(tokens: list[int], eos: list[int]) -> tuple[list[int], list[int]]:
    """The tokens before the first that ends a turn, and that one if there is one."""
    for place, token in enumerate(tokens):
        if token in eos:
            return tokens[:place], [token]
    return tokens, []
