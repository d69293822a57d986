"""Where text and the target's features of it come from: the user's files, or the target in conversation with itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from console import bar
from conversations import headers, read
from features import extract, part
from generation import ANSWER, OPENINGS, QUESTION, Passes, features_of, generate, take_up, written_graph
from torch import Tensor
from training import fast_dtype

from jakiro_export.checkpoint.target import Target
from jakiro_runtime.backend.onnxruntime import open_graph


def matrices(target: Target) -> tuple[Tensor, Tensor]:
    """The target's embedding, float32, and its output projection, [vocab, hidden] each."""
    model = target.model()
    embedding = model.get_input_embeddings().weight.detach().float()
    projection = model.get_output_embeddings().weight.detach().clone()
    target._model = None
    return embedding, projection


def given(
    target: Target, files: tuple[Path, ...], work: Path, tokens: int | None, held_out: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The conversations of the user's files, of which so many tokens are used, and their features."""
    longest, vocab = target.config.max_position_embeddings, target.config.vocab_size
    conversations = [np.array(c, np.int32) for file in files for c in read(file, vocab) if 8 <= len(c) <= longest]
    if tokens is not None:
        conversations = [conversations[n] for n in part(conversations, tokens, held_out)]
    model = target.model().to(fast_dtype())  # type: ignore[call-overload]
    with bar("Features", sum(map(len, conversations))) as advance:
        features = extract(model, conversations, work, advance)
    target._model = None
    return conversations, features


def generated(target: Target, work: Path, tokens: int, slots: int, seed: int) -> tuple[list[list[int]], np.ndarray]:
    """Conversations of the target with itself, and their features."""
    tokenizer, file, hidden = target.tokenizer(), work / "conversations.jsonl", target.config.hidden_size
    marks, openings = headers(tokenizer), [tokenizer.encode(words, add_special_tokens=False) for words in OPENINGS]
    if take_up(file, hidden)[1] < tokens:
        with bar("The target's graph", 1.0):
            graph = open_graph(written_graph(target, work))
        passes = Passes(graph, target.config, len(marks[0]) + len(marks[1]) + QUESTION + ANSWER, slots)
        with bar("Text", tokens) as advance:
            generate(passes, marks, openings, target.eos_token_ids(), file, tokens, seed, advance)
    return list(read(file, target.config.vocab_size)), np.memmap(features_of(file), np.float16, "r").reshape(-1, hidden)
