"""Row matmuls: a row's result does not depend on the other rows of the call."""

from __future__ import annotations

import numpy as np
import pytest

from jakiro_export.ops import registry
from jakiro_export.ops.row_matmul import FORMS
from operator_model import eager, run

NAMES = [before + name + after for name in ("RowInt8MatMul", "RowInt4MatMul") for before, after in FORMS]


@pytest.mark.parametrize("form", [run, eager])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_its_own(name: str, form) -> None:  # type: ignore[no-untyped-def]
    operator = registry.operators()[name]
    example = operator.example(np.random.default_rng(0))
    (together,) = form(operator, example)
    by_row = [each for each in ("x", "residual") if each in example.inputs]
    for row in range(together.shape[1]):
        alone = {each: value[:, row : row + 1] if each in by_row else value for each, value in example.inputs.items()}
        (found,) = form(operator, example._replace(inputs=alone))
        np.testing.assert_allclose(found[:, 0], together[:, row], rtol=1e-6, atol=1e-6 * np.abs(together).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_zeros_is_zero(name: str) -> None:
    operator = registry.operators()[name]
    example = operator.example(np.random.default_rng(0))
    inputs = {each: np.zeros_like(value) if each in ("x", "residual") else value for each, value in example.inputs.items()}
    assert not run(operator, example._replace(inputs=inputs))[0].any()
