"""Expert dispatch: the operator's body in ONNX against its definition in torch."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from jakiro_export.ops import expert_dispatch as dispatch


def run_body(x: torch.Tensor, logits: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, top_k: int, opset: int):  # type: ignore[no-untyped-def]
    """The function body alone in a model, through ONNX Runtime."""
    names = ["x", "router_logits", "gate_up", "down"]
    tensors = dict(zip(names, (x, logits, gate_up, down), strict=True))
    kind = TensorProto.FLOAT if x.dtype == torch.float32 else TensorProto.FLOAT16
    node = helper.make_node(dispatch.NAME, names, ["primary", "contrast"], domain=dispatch.DOMAIN, top_k=top_k, contrast=1)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, kind, list(t.shape)) for name, t in tensors.items()],
        [helper.make_tensor_value_info(name, kind, ["rows", "hidden"]) for name in ("primary", "contrast")],
    )
    body = dispatch.function(gate_up.shape[0], top_k, opset, kind)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(dispatch.DOMAIN, dispatch.VERSION)]
    model = helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {name: t.numpy() for name, t in tensors.items()})


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize(("rows", "experts", "top_k"), [(1, 2, 2), (17, 2, 2), (5, 4, 2), (9, 8, 3), (4, 3, 1)])
def test_body_computes_the_mixture(rows: int, experts: int, top_k: int, opset: int) -> None:
    torch.manual_seed(rows)
    x, logits = torch.randn(rows, 24), torch.randn(rows, experts + 2)
    gate_up, down = torch.randn(experts, 40, 24) / 5, torch.randn(experts, 24, 20) / 5
    ours = run_body(x, logits, gate_up, down, top_k, opset)
    expected = dispatch.reference(x, logits, gate_up, down, top_k, contrast=True)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-5)


def test_a_tie_of_the_contrast_logits_favours_the_second_expert() -> None:
    x, logits = torch.randn(3, 8), torch.zeros(3, 4)
    gate_up, down = torch.randn(2, 12, 8), torch.randn(2, 8, 6)
    _, contrast = run_body(x, logits, gate_up, down, 2, 23)
    first, second = (dispatch.reference(x, torch.tensor([[a, b, 0, 0]] * 3), gate_up, down, 2, False)[0]
                     for a, b in ((1e4, -1e4), (-1e4, 1e4)))  # fmt: skip
    np.testing.assert_allclose(contrast, (0.5 * (second - first)).numpy(), atol=1e-5)


def test_routing_ties_go_to_the_lower_expert() -> None:
    x, logits = torch.randn(2, 8), torch.zeros(2, 6)
    gate_up, down = torch.randn(4, 12, 8), torch.randn(4, 8, 6)
    primary, _ = run_body(x, logits, gate_up, down, 2, 23)
    two, _ = dispatch.reference(x, torch.zeros(2, 4), gate_up[:2], down[:2], 2, False)
    np.testing.assert_allclose(primary, two.numpy(), atol=1e-5)
