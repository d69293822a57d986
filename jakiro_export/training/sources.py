"""Sources of training text and the target's features of it: the user's files, or the target in conversation with itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from jakiro_bench.prompts import read_prompts
from jakiro_export.checkpoints.target import Target
from jakiro_export.training.batched_target import BatchedTarget, write_target_graph
from jakiro_export.training.console import CONSOLE, bar
from jakiro_export.training.conversations import headers, read
from jakiro_export.training.features import Text, extract, part, with_stored_features
from jakiro_export.training.generation import ANSWER, PROMPT, QUESTION, generate, resume_file
from jakiro_export.training.openings import OPENINGS
from jakiro_export.training.trainer import fast_dtype
from jakiro_runtime.backends.onnxruntime import open_graph


def matrices(target: Target) -> tuple[Tensor, Tensor]:
    """The target's embedding, float32, and its output projection, [vocab, hidden] each."""
    with _model(target) as model:
        embedding, projection = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert isinstance(embedding, Tensor)
        assert isinstance(projection, Tensor)
        return embedding.detach().float(), projection.detach().clone()


@contextmanager
def _model(target: Target) -> Iterator[PreTrainedModel]:
    """transformers' model of the target; its memory is free again afterwards."""
    model = target.model()
    assert isinstance(model, PreTrainedModel)
    yield model
    target._model = None


def read_text(
    target: Target, files: tuple[Path, ...], work: Path, tokens: int | None, held_out: int, layers: tuple[int, ...] = ()
) -> Text:
    """The conversations of the user's files, of which at most `tokens` tokens are used.

    Features that lie next to a file, where `generate_text` has put them, are taken; others are computed, and kept in `work`.

    Args:
        layers: whose inputs the head reads; where it reads any, all is computed
    """
    longest, vocab, hidden = target.config.max_position_embeddings, target.config.vocab_size, target.config.hidden_size
    found = [
        (np.array(conversation, np.int32), asked, rows)
        for file in files
        for (conversation, asked), rows in with_stored_features(file, list(read(file, vocab)), hidden, take=not layers)
        if 8 <= len(conversation) <= longest
    ]
    if tokens is not None:
        found = [found[n] for n in part([conversation for conversation, _, _ in found], tokens, held_out)]
    bare = [conversation for conversation, _, rows in found if rows is None]
    computed = np.empty((0, hidden * (1 + len(layers))), np.float16)
    if bare:
        with _model(target) as model, bar("Features", sum(map(len, bare))) as advance:
            nn.Module.to(model, fast_dtype())
            computed = extract(model, bare, work, advance, layers)
    text, start = Text(), 0
    for conversation, asked, rows in found:
        if rows is None:
            start, rows = start + len(conversation), computed[start : start + len(conversation)]
        text.add([(conversation, asked)], rows, hidden)
    return text


def generate_text(target: Target, work: Path, tokens: int, slots: int, seed: int, files: tuple[Path, ...]) -> Path:
    """A file of the target's conversations, first about the user's prompts, then with itself; features next to it."""
    tokenizer, file, hidden = target.tokenizer(), work / "conversations.jsonl", target.config.hidden_size
    asked = [prompt.turns[0] for each in files for prompt in read_prompts(each)]
    marks = headers(tokenizer)
    if resume_file(file, hidden)[1] < tokens:
        with bar("The target's graph", 1.0):
            graph = open_graph(write_target_graph(target, work))
        openings, questions = (
            [tokenizer.encode(text, add_special_tokens=False) for text in texts] for texts in (OPENINGS, asked)
        )
        short = [ids for ids in questions if len(ids) <= PROMPT]
        if len(short) < len(questions):
            CONSOLE.print(f"{len(questions) - len(short)} of {len(questions)} prompts have more than {PROMPT} tokens: left out.")
        questions = [short[n] for n in np.random.default_rng(seed).permutation(len(short))]
        longest = max([QUESTION, *map(len, questions)])
        batched = BatchedTarget(graph, target.config, len(marks[0]) + len(marks[1]) + longest + ANSWER, slots)
        with bar("Text", tokens) as advance:
            generate(batched, marks, openings, questions, target.eos_token_ids(), file, tokens, seed, advance)
    return file
