"""The columns of the draft vocabulary that a step looks at."""

from __future__ import annotations

import torch

from jakiro_export.training.columns import target_shares


def test_the_columns_of_a_step_stand_for_the_whole_vocabulary() -> None:
    """On average over what is drawn: of the shares, and of the sum of e to the logits that a loss is made of."""
    torch.manual_seed(0)
    projection, features = torch.randn(40, 16), torch.randn(30, 16)
    logits = features @ projection.T
    whole, columns, counts = target_shares(projection, features, 40)
    assert torch.allclose(whole, logits.softmax(-1), atol=1e-6)
    assert columns.tolist() == list(range(40))
    assert counts.tolist() == [1.0] * 40
    likely = set(whole.sum(0).argsort(descending=True)[:15].tolist())
    mass, partition = torch.zeros(30, 40), torch.zeros(30)
    for _ in range(4000):
        shares, columns, counts = target_shares(projection, features, 20)
        assert len(set(columns.tolist())) == 20
        assert likely <= set(columns.tolist())
        mass[:, columns] += shares / 4000
        partition += (logits[:, columns] + counts.log()).exp().sum(-1) / 4000
    assert torch.allclose(mass, whole, rtol=0.2, atol=1e-3)
    assert torch.allclose(partition, logits.exp().sum(-1), rtol=0.05)


def test_shares_are_computed_in_the_type_of_the_projection() -> None:
    """Whatever the type of the features: processors with bfloat16 instructions train in it."""
    torch.manual_seed(0)
    projection, features = torch.randn(40, 16), torch.randn(30, 16)
    exact = target_shares(projection, features, 40)[0]
    rounded = target_shares(projection.bfloat16(), features, 40)[0]
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), exact, atol=0.02)
