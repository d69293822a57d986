"""Text of several files, each with or without features."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from conversations import random_conversations
from jakiro_export.checkpoints.target import load_target
from jakiro_export.training.features import extract, features_of
from jakiro_export.training.sources import read_text


def written(file: Path, text: list[np.ndarray], features: np.ndarray | None = None) -> Path:
    """A file of conversations, half of each the prompt, and features next to it."""
    lines = ({"prompt": c[: len(c) // 2].tolist(), "response": c[len(c) // 2 :].tolist()} for c in text)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if features is not None:
        features.tofile(features_of(file))
    return file


def test_texts_of_several_files_each_keep_their_features(
    tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in bfloat16 a row depends on the rows that it is computed with
    monkeypatch.setattr("jakiro_export.training.sources.fast_dtype", lambda: torch.float32)
    target, texts = (
        load_target(tiny_target, "tiny"),
        [random_conversations(30, 1), random_conversations(20, 2), random_conversations(25, 3)],
    )
    texts[0].insert(3, np.array([5, 6], np.int32))  # too short to be used: later ones must not slip
    width = target.config.hidden_size
    known = {n: np.random.default_rng(n).normal(size=(sum(map(len, texts[n])), width)).astype(np.float16) for n in (0, 2)}
    files = tuple(written(tmp_path / f"{n}.jsonl", text, known.get(n)) for n, text in enumerate(texts))
    text = read_text(target, files, tmp_path / "work", None, 96)
    assert [c.tolist() for c in text.tokens] == [c.tolist() for each in texts for c in each if len(c) >= 8]
    assert text.prompts == [len(c) // 2 for c in text.tokens]
    starts = {n: np.concatenate([[0], np.cumsum([len(c) for c in texts[n]])]) for n in known}
    assert np.array_equal(text.features[3], known[0][starts[0][4] : starts[0][5]])
    assert np.array_equal(text.features[-1], known[2][starts[2][-2] :])
    computed = extract(target.model(), texts[1], tmp_path / "alone", lambda done: None)
    assert np.array_equal(np.concatenate(text.features[30:50]), computed)
    part_of = read_text(target, files, tmp_path / "part", 200, 5)
    for tokens, features in zip(part_of.tokens, part_of.features, strict=True):
        same = next(n for n, c in enumerate(text.tokens) if np.array_equal(c, tokens))
        assert np.abs(features.astype(np.float32) - text.features[same]).max() < 0.02


def test_features_of_less_than_the_text_get_a_sentence(tiny_target: Path, tmp_path: Path) -> None:
    target, text = load_target(tiny_target, "tiny"), random_conversations(9)
    rows = np.zeros((sum(map(len, text)) - 1, target.config.hidden_size), np.float16)
    with pytest.raises(click.ClickException, match="move it away"):
        read_text(target, (written(tmp_path / "text.jsonl", text, rows),), tmp_path / "work", None, 96)
