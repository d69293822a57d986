"""The training loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conversations import random_conversations
from jakiro_export.training.columns import sample_columns
from jakiro_export.training.features import Text
from jakiro_export.training.model import new_head
from jakiro_export.training.settings import Settings
from jakiro_export.training.sizes import Sizes
from jakiro_export.training.trainer import Trainer

SIZES = Sizes(16, 2, 1, 8, 16, 1e-5, 10000.0)


def small_trainer(
    folder: Path, asked: list[int] | None = None, dtype: torch.dtype = torch.float32, sizes: Sizes = SIZES, **settings: object
) -> Trainer:
    torch.manual_seed(0)
    head, text, conversations = (
        new_head(sizes),
        Text(),
        random_conversations(15, vocab=60),
    )
    features = np.random.default_rng(0).standard_normal((sum(map(len, conversations)), 16)).astype(np.float16)
    text.add(zip(conversations, asked or [4] * 15, strict=True), features, 16)
    chosen = Settings(hours=None, steps=10, draft_vocab=40, held_out=2, **settings)  # type: ignore[arg-type]
    return Trainer(head, text, torch.randn(60, 16), torch.randn(60, 16), chosen, folder, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_runs_in_either_type(tmp_path: Path, dtype: torch.dtype) -> None:
    trainer, losses = small_trainer(tmp_path, dtype=dtype, chain=2, depths=2), []
    trainer.run(5, lambda measure: losses.append(measure.loss), lambda share: None)
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert trainer.step == 10


def test_a_training_goes_on_in_the_type_it_began_with(tmp_path: Path) -> None:
    """Another machine may prefer another one, and end at another head."""
    began = small_trainer(tmp_path, dtype=torch.bfloat16)
    began.save()
    continued = small_trainer(tmp_path, dtype=torch.float32)
    assert continued.resume()
    assert continued.dtype == continued.draft_projection.dtype == torch.bfloat16
    assert torch.equal(continued.draft_projection, began.draft_projection)


@pytest.mark.parametrize("other", [{"experts": False}, {"inner": 24}, {"layers": (1,)}])
def test_a_head_of_another_kind_begins_anew(tmp_path: Path, other: dict[str, object]) -> None:
    """In the same folder: its state is not that of the head before."""
    small_trainer(tmp_path).save()
    assert small_trainer(tmp_path).resume()
    assert not small_trainer(tmp_path, sizes=replace(SIZES, **other)).resume()  # type: ignore[arg-type]


def test_only_answers_are_learned(tmp_path: Path) -> None:
    """Gradients of the guesses are where a chain that starts in an answer arrives, and nowhere else."""
    asked = [1, 5, 0, 7, 3] * 3
    trainer = small_trainer(tmp_path, asked)
    group = np.array([3, 6, 9])
    _, truth, _, answers = trainer.batches.load(group)
    columns = sample_columns(trainer.draft_projection, truth, answers, trainer.settings.columns)
    for step, ahead in ((0, 1), (2, 1), (2, 2)):
        guess = torch.randn(len(group), truth.shape[1] - 1, 16, requires_grad=True)
        trainer.compare(guess, truth, columns, answers, ahead, step).backward()
        for row, n in enumerate(group):
            start = max(asked[n] - 1, 0)
            expected = [start + step <= place < trainer.data.lengths[n] - ahead for place in range(guess.shape[1])]
            assert guess.grad[row].any(-1).tolist() == expected
