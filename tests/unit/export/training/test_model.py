"""The trainable head: its loss, and its arithmetic against the one written plainly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from jakiro_export.training.model import FusedFeatureHead, SoftCrossEntropy, new_head
from jakiro_export.training.sizes import Sizes
from reference_draft import PlainDraft, PlainEagle, PlainEagle3, PlainJakiro3, Prediction

PLAIN: dict[str, Callable[..., PlainDraft]] = {
    "jakiro": PlainDraft,
    "eagle": PlainEagle,
    "jakiro3": lambda *of: PlainJakiro3(*of, fc_norm=True),
    "eagle3": lambda *of: PlainEagle3(*of, fc_norm=True),
}


def projected(prediction: Prediction) -> Tensor:
    """What is projected of a plain prediction: the second of two, where they are two."""
    return prediction[1] if isinstance(prediction, tuple) else prediction


@pytest.mark.parametrize("family", PLAIN)
@torch.no_grad()
def test_a_chain_is_that_of_the_plain_arithmetic(family: str) -> None:
    """Guesses of three steps from every row, and the second guess: what is learned is what a graph computes."""
    torch.manual_seed(1)
    sizes = Sizes(24, 4, 2, 8, 40, 1e-6, 1e4, family.startswith("jakiro"), (1, 2, 5) if family.endswith("3") else ())
    assert sizes.family == family
    head, embedding = new_head(sizes), torch.randn(30, 24)
    for parameter in head.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    plain = PLAIN[family](dict(head.state_dict()), embedding, 4, 2, 10000.0)
    tokens, features = torch.randint(0, 30, (7,)), torch.randn(7, 24 * max(1, sizes.states))
    steps = list(head.steps(embedding[tokens][None], features[None], 3))
    for start in range(7):
        left, right, seen = plain.accepted(tokens[: start + 1].tolist(), features[: start + 1], list(range(start + 1)), [])
        for step in range(min(3, 7 - start)):
            row = start + step
            if step:
                left, right, own = plain.row(int(tokens[row]), plain.feature(left), row, seen)
                seen = [*seen, own]
            primary, contrast = steps[step]
            assert torch.allclose(primary[0, row].double(), projected(left), atol=1e-4)
            if sizes.experts:
                assert contrast is not None
                assert torch.allclose(contrast[0, row].double(), projected(right), atol=1e-4)
            else:
                assert contrast is None


@torch.no_grad()
def test_a_head_with_fused_features_begins_at_the_target_s_own() -> None:
    """Of a target whose final norm is a plain one: with nothing learned, what is projected starts as the features themselves."""
    torch.manual_seed(0)
    head, states, weight = (
        FusedFeatureHead(Sizes(24, 4, 2, 8, 40, 1e-6, 1e4, layers=(1, 2, 5))),
        torch.randn(50, 72),
        torch.rand(24),
    )
    features = F.rms_norm(states[:, -24:], (24,), eps=1e-6) * weight
    head.fit_scale(features, states)
    assert torch.allclose(head.norm.weight, weight, atol=1e-5)
    assert torch.allclose(head.scored(head.start(states)), features, atol=1e-5)


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
