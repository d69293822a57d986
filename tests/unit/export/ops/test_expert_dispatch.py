"""Expert dispatch: the body for several counts of experts and opsets, and its ties."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from jakiro_export.ops.expert_dispatch import OPERATORS, expert_dispatch
from jakiro_export.ops.operator import Example
from operator_model import one_node, session

(OPERATOR,) = OPERATORS


def run_body(  # type: ignore[no-untyped-def]
    x: torch.Tensor, logits: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, top_k: int, opset: int
):
    """The function body alone in a model, through ONNX Runtime."""
    tensors = {"x": x, "router_logits": logits, "gate_up": gate_up, "down": down}
    example = Example({name: tensor.numpy() for name, tensor in tensors.items()}, {"top_k": top_k, "contrast": 1})
    model = one_node(OPERATOR, example, opset)
    onnx.checker.check_model(model, full_check=True)
    return session(model).run(None, example.inputs)


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize(("rows", "experts", "top_k"), [(1, 2, 2), (17, 2, 2), (5, 4, 2), (9, 8, 3), (4, 3, 1)])
def test_body_computes_the_mixture(rows: int, experts: int, top_k: int, opset: int) -> None:
    torch.manual_seed(rows)
    x, logits = torch.randn(rows, 24), torch.randn(rows, experts + 2)
    gate_up, down = torch.randn(experts, 40, 24) / 5, torch.randn(experts, 24, 20) / 5
    ours = run_body(x, logits, gate_up, down, top_k, opset)
    expected = expert_dispatch(x, logits, gate_up, down, top_k, contrast=True)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-5)


def test_a_tie_of_the_contrast_logits_favours_the_second_expert() -> None:
    x, logits = torch.randn(3, 8), torch.zeros(3, 4)
    gate_up, down = torch.randn(2, 12, 8), torch.randn(2, 8, 6)
    _, contrast = run_body(x, logits, gate_up, down, 2, 23)
    first, second = (expert_dispatch(x, torch.tensor([[a, b, 0, 0]] * 3), gate_up, down, 2, False)[0]
                     for a, b in ((1e4, -1e4), (-1e4, 1e4)))  # fmt: skip
    np.testing.assert_allclose(contrast, (0.5 * (second - first)).numpy(), atol=1e-5)


def test_routing_ties_go_to_the_lower_expert() -> None:
    x, logits = torch.randn(2, 8), torch.zeros(2, 6)
    gate_up, down = torch.randn(4, 12, 8), torch.randn(4, 8, 6)
    primary, _ = run_body(x, logits, gate_up, down, 2, 23)
    two, _ = expert_dispatch(x, torch.zeros(2, 4), gate_up[:2], down[:2], 2, False)
    np.testing.assert_allclose(primary, two.numpy(), atol=1e-5)
