"""The target's features of a text, and what is held out of it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from conversations import random_conversations
from jakiro_export.checkpoints.target import load_target
from jakiro_export.training.features import extract, held_out, part


def test_what_is_held_out_stays_the_same_whatever_part_of_a_text_is_used() -> None:
    text = random_conversations(1200)
    held = [text[n].tobytes() for n in held_out(text, 20)]
    for tokens in (0, 500, 5000, 10**9):
        used = [text[n] for n in part(text, tokens, 20)]
        assert [c.tobytes() for c in used[:20]] == held
        rest = used[20:]
        assert sum(map(len, rest)) <= tokens
        assert not {c.tobytes() for c in rest} & set(held)
    assert len(part(text, 10**9, 20)) == len(text)


def test_features_are_computed_once_however_the_text_grows(tiny_target: Path, tmp_path: Path) -> None:
    model, text, said = load_target(tiny_target, "tiny").model(), random_conversations(300), []
    extract(model, text[:40], tmp_path / "grown", said.append)
    grown = np.array(extract(model, text, tmp_path / "grown", said.append))
    assert said[0] == 0
    assert said[2] == sum(map(len, text[:40]))  # where the second run began
    whole = np.array(extract(model, text, tmp_path / "whole", lambda done: None))
    assert np.abs(grown.astype(np.float32) - whole).max() < 0.02  # the same up to how calls were grouped
    less = extract(model, text[:10], tmp_path / "grown", lambda done: None)
    assert np.array_equal(less, grown[: len(less)])
    assert (tmp_path / "grown" / "features.f16").stat().st_size == grown.nbytes  # asking for less forgets nothing


def test_features_of_another_text_are_not_taken_for_its_own(tiny_target: Path, tmp_path: Path) -> None:
    model, text = load_target(tiny_target, "tiny").model(), random_conversations(30)
    extract(model, text, tmp_path, lambda done: None)
    other = [*text[:20], *random_conversations(10, seed=1)]
    found = extract(model, other, tmp_path, lambda done: None)
    expected = extract(model, other, tmp_path / "new", lambda done: None)
    assert np.abs(found.astype(np.float32) - expected).max() < 0.02
    marks = json.loads((tmp_path / "features.json").read_text())["conversations"]
    assert marks == [zlib.crc32(c.tobytes()) for c in other]
