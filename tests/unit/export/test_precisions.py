"""Number formats of an engine."""

from __future__ import annotations

from jakiro_export.precisions import PRECISIONS
from jakiro_export.quantization.recipe import RECIPES


def test_what_is_quantised_has_a_recipe() -> None:
    assert {name for name, precision in PRECISIONS.items() if precision.quantized} == set(RECIPES)
