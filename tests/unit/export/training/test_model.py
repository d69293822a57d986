"""The trainable head's loss."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from jakiro_export.training.model import SoftCrossEntropy


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
