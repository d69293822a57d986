"""Weights bound to a traced graph."""

from __future__ import annotations

import numpy as np
import pytest

from ir_graphs import parse, run
from jakiro_export.artifact.weights import Array
from jakiro_export.errors import ExportError
from jakiro_export.passes.bind import bind

TEXT = "g (float[2, 3] x, float[3, 4] w) => (float[2, 4] y) { y = MatMul(x, w) }"


def test_initializers_get_the_recipe_of_their_name() -> None:
    model, w = parse(TEXT, w=np.zeros((3, 4), np.float32)), np.arange(12, dtype=np.float32).reshape(3, 4)
    bind(model, {"w": Array(w), "unused": Array(w)})
    np.testing.assert_array_equal(run(model, x=np.ones((2, 3), np.float32))[0], np.ones((2, 3)) @ w)


def test_a_missing_or_misshaped_tensor_is_named() -> None:
    model = parse(TEXT, w=np.zeros((3, 4), np.float32))
    with pytest.raises(ExportError, match="needs a tensor w that the checkpoint does not provide"):
        bind(model, {})
    with pytest.raises(ExportError, match=r"Tensor w has shape \[4, 3\] in the checkpoint; its configuration asks for \[3, 4\]"):
        bind(model, {"w": Array(np.zeros((4, 3), np.float32))})
