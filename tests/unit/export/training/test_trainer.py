"""The pieces of the recipe that everything else rests on, each against a plain way to say the same."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from jakiro_export.checkpoints.target import load_target
from jakiro_export.training.features import Text, extract, features_of, held_out, part
from jakiro_export.training.heldout import HeldOut
from jakiro_export.training.model import SoftCrossEntropy, TrainedHead
from jakiro_export.training.sources import given
from jakiro_export.training.trainer import Settings, Trainer


def talks(count: int, seed: int = 0, vocab: int = 320) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocab, int(rng.integers(8, 30))).astype(np.int32) for _ in range(count)]


def test_the_loss_and_its_gradient_are_those_of_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    features, projection = torch.randn(1100, 24, requires_grad=True), torch.randn(50, 24)  # more rows than are done at once
    targets, bias = torch.randn(1100, 50).softmax(-1), torch.randn(50)
    ours = SoftCrossEntropy.apply(features, projection, bias, targets)
    (gradient,) = torch.autograd.grad(3 * ours, features)
    plain = F.cross_entropy(features @ projection.T + bias, targets, reduction="sum")
    (expected,) = torch.autograd.grad(3 * plain, features)
    assert torch.allclose(ours, plain, rtol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5)


def small_trainer(folder: Path, asked: list[int] | None = None, **settings: object) -> Trainer:
    torch.manual_seed(0)
    head, text, conversations = TrainedHead(16, 2, 1, 8, 16, 1e-5, 10000.0), Text(), talks(15, vocab=60)
    features = np.random.default_rng(0).standard_normal((sum(map(len, conversations)), 16)).astype(np.float16)
    text.add(zip(conversations, asked or [4] * 15, strict=True), features)
    chosen = Settings(hours=None, steps=10, draft_vocab=40, held_out=2, **settings)  # type: ignore[arg-type]
    return Trainer(head, text, torch.randn(60, 16), torch.randn(60, 16), chosen, folder)


def test_the_columns_of_a_step_stand_for_the_whole_vocabulary(tmp_path: Path) -> None:
    """On average over what is drawn: of the shares, and of the sum of e to the logits that a loss is made of."""
    trainer, features = small_trainer(tmp_path, columns=20), torch.randn(30, 16)
    logits = features @ trainer.small.T
    whole, columns, counts = small_trainer(tmp_path, columns=40)._wanted(features)
    assert torch.allclose(whole, logits.softmax(-1), atol=1e-6)
    assert columns.tolist() == list(range(40))
    assert counts.tolist() == [1.0] * 40
    likely = set(whole.sum(0).argsort(descending=True)[:15].tolist())
    mass, partition = torch.zeros(30, 40), torch.zeros(30)
    for _ in range(4000):
        shares, columns, counts = trainer._wanted(features)
        assert len(set(columns.tolist())) == 20
        assert likely <= set(columns.tolist())
        mass[:, columns] += shares / 4000
        partition += (logits[:, columns] + counts.log()).exp().sum(-1) / 4000
    assert torch.allclose(mass, whole, rtol=0.2, atol=1e-3)
    assert torch.allclose(partition, logits.exp().sum(-1), rtol=0.05)


def test_only_answers_are_learned(tmp_path: Path) -> None:
    """Gradients of the guesses are where a chain that starts in an answer arrives, and nowhere else."""
    asked = [1, 5, 0, 7, 3] * 3
    trainer = small_trainer(tmp_path, asked)
    group = np.array([3, 6, 9])
    _, truth, answers = trainer._load(group)
    words = trainer._words(truth, answers)
    for step, ahead in ((0, 1), (2, 1), (2, 2)):
        guess = torch.randn(len(group), truth.shape[1] - 1, 16, requires_grad=True)
        trainer._compare(guess, truth, words, answers, ahead, step).backward()
        for row, n in enumerate(group):
            start = max(asked[n] - 1, 0)
            expected = [start + step <= place < trainer.lengths[n] - ahead for place in range(guess.shape[1])]
            assert guess.grad[row].any(-1).tolist() == expected


def test_what_is_held_out_stays_the_same_whatever_part_of_a_text_is_used() -> None:
    text = talks(1200)
    held = [text[n].tobytes() for n in held_out(text, 20)]
    for tokens in (0, 500, 5000, 10**9):
        used = [text[n] for n in part(text, tokens, 20)]
        assert [c.tobytes() for c in used[:20]] == held
        rest = used[20:]
        assert sum(map(len, rest)) <= tokens
        assert not {c.tobytes() for c in rest} & set(held)
    assert len(part(text, 10**9, 20)) == len(text)


def test_features_are_computed_once_however_the_text_grows(tiny_target: Path, tmp_path: Path) -> None:
    model, text, said = load_target(tiny_target, "tiny").model(), talks(300), []
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
    model, text = load_target(tiny_target, "tiny").model(), talks(30)
    extract(model, text, tmp_path, lambda done: None)
    other = [*text[:20], *talks(10, seed=1)]
    found = extract(model, other, tmp_path, lambda done: None)
    expected = extract(model, other, tmp_path / "new", lambda done: None)
    assert np.abs(found.astype(np.float32) - expected).max() < 0.02
    marks = json.loads((tmp_path / "features.json").read_text())["conversations"]
    assert marks == [zlib.crc32(c.tobytes()) for c in other]


def written(file: Path, text: list[np.ndarray], features: np.ndarray | None = None) -> Path:
    """A file of conversations, half of each the prompt, and features beside it."""
    lines = ({"prompt": c[: len(c) // 2].tolist(), "response": c[len(c) // 2 :].tolist()} for c in text)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if features is not None:
        features.tofile(features_of(file))
    return file


def test_texts_of_several_files_each_keep_their_features(tiny_target: Path, tmp_path: Path) -> None:
    target, texts = load_target(tiny_target, "tiny"), [talks(30, 1), talks(20, 2), talks(25, 3)]
    texts[0].insert(3, np.array([5, 6], np.int32))  # too short to be used: those behind it must not slip
    width = target.config.hidden_size
    known = {n: np.random.default_rng(n).normal(size=(sum(map(len, texts[n])), width)).astype(np.float16) for n in (0, 2)}
    files = tuple(written(tmp_path / f"{n}.jsonl", text, known.get(n)) for n, text in enumerate(texts))
    text = given(target, files, tmp_path / "work", None, 96)
    assert [c.tolist() for c in text.tokens] == [c.tolist() for each in texts for c in each if len(c) >= 8]
    assert text.prompts == [len(c) // 2 for c in text.tokens]
    starts = {n: np.concatenate([[0], np.cumsum([len(c) for c in texts[n]])]) for n in known}
    assert np.array_equal(text.features[3], known[0][starts[0][4] : starts[0][5]])
    assert np.array_equal(text.features[-1], known[2][starts[2][-2] :])
    computed = extract(target.model(), texts[1], tmp_path / "alone", lambda done: None)
    assert np.array_equal(np.concatenate(text.features[30:50]), computed)
    part_of = given(target, files, tmp_path / "part", 200, 5)
    for tokens, features in zip(part_of.tokens, part_of.features, strict=True):
        same = next(n for n, c in enumerate(text.tokens) if np.array_equal(c, tokens))
        assert np.abs(features.astype(np.float32) - text.features[same]).max() < 0.02


def test_features_of_less_than_the_text_get_a_sentence(tiny_target: Path, tmp_path: Path) -> None:
    target, text = load_target(tiny_target, "tiny"), talks(9)
    rows = np.zeros((sum(map(len, text)) - 1, target.config.hidden_size), np.float16)
    with pytest.raises(click.ClickException, match="move it away"):
        given(target, (written(tmp_path / "text.jsonl", text, rows),), tmp_path / "work", None, 96)


@pytest.mark.parametrize("depths", [1, 3])
def test_accuracy_is_counted_as_a_head_is_used(depths: int) -> None:
    """One chain at a time, token by token of the text, each guess from the feature that the one before it predicted."""
    torch.manual_seed(0)
    head = TrainedHead(16, 2, 1, 8, 16, 1e-5, 10000.0)
    embedding, projection, kept = torch.randn(60, 16), torch.randn(60, 16), torch.arange(0, 60, 2)
    text = Text()
    conversations = talks(15, vocab=60)
    asked = [1, *range(len(conversations) - 1)]
    features = np.random.default_rng(0).standard_normal((sum(map(len, conversations)), 16)).astype(np.float16)
    text.add(zip(conversations, asked, strict=True), features)
    held = HeldOut(text, text.held_out(3), projection)
    accuracy, contrast = held.accuracy(head, embedding, projection[kept], kept, depths)
    hits, counts = np.zeros(depths + 1), np.zeros(depths + 1)
    with torch.no_grad():
        for n in held.numbers:
            features, tokens = torch.from_numpy(np.array(text.features[n])).float(), torch.from_numpy(text.tokens[n]).long()
            truth = (features @ projection.T).argmax(-1)
            for start in range(max(asked[n] - 1, 0), len(tokens) - 1):
                given = features[: start + 1]
                for depth in range(min(depths, len(tokens) - 1 - start)):
                    row = start + depth
                    embeddings = embedding[tokens[1 : row + 2]]
                    primary, second = next(iter(head.steps(embeddings[None], given[None], 1)))
                    hits[depth] += int(kept[(primary[0, row] @ projection[kept].T).argmax()] == truth[row + 1])
                    counts[depth] += 1
                    if depth == depths - 1 and row + 2 < len(truth):
                        hits[depths] += int(kept[(second[0, row] @ projection[kept].T).argmax()] == truth[row + 2])
                        counts[depths] += 1
                    given = torch.cat([given, primary[0, row : row + 1]])
    assert [*accuracy, contrast] == pytest.approx((hits / counts).tolist())
    assert counts[0] > 30
