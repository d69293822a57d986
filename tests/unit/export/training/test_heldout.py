"""Held-out accuracy, against a chain at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conversations import random_conversations
from jakiro_export.training.features import Text
from jakiro_export.training.heldout import HeldOut
from jakiro_export.training.model import new_head
from jakiro_export.training.sizes import Sizes


@pytest.mark.parametrize("depths", [1, 3])
def test_accuracy_is_counted_as_a_head_is_used(depths: int) -> None:
    """One chain at a time, token by token of the text, each guess from the feature that the one before it predicted."""
    torch.manual_seed(0)
    head = new_head(Sizes(16, 2, 1, 8, 16, 1e-5, 10000.0))
    embedding, projection, kept = torch.randn(60, 16), torch.randn(60, 16), torch.arange(0, 60, 2)
    text = Text()
    conversations = random_conversations(15, vocab=60)
    asked = [1, *range(len(conversations) - 1)]
    features = np.random.default_rng(0).standard_normal((sum(map(len, conversations)), 16)).astype(np.float16)
    text.add(zip(conversations, asked, strict=True), features, 16)
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
