"""Recipes: which matrix gets which scheme, and how a scheme is added."""

from __future__ import annotations

import pytest

from jakiro_export.quantization.recipe import LOGITS, RECIPES, Recipe, Rule
from jakiro_export.quantization.schemes import GPU_SCHEMES, SCHEMES


def scheme(precision: str, name: str, *shape: int, logits: tuple[str, ...] = ("model.lm_head.weight",)) -> str | None:
    found = RECIPES[precision].scheme(name, shape, logits)
    return found.name if found is not None else None


@pytest.mark.parametrize(
    ("name", "shape", "int8", "int4"),
    [
        ("model.model.layers.0.mlp.down_proj.weight", (64, 96), "int8", "int4"),
        ("model.model.layers.0.mlp.down_proj.weight", (64, 48), "int8", "int8"),  # no whole groups of 32
        ("model.model.layers.0.mlp.down_proj.weight", (60, 96), None, None),  # no whole tiles
        ("model.lm_head.weight", (320, 64), "int8", "int8"),
        ("head.fc.weight", (64, 128), "int8", "int8"),
        ("head.router.weight", (16, 64), None, None),
    ],
)
def test_what_each_matrix_gets(name: str, shape: tuple[int, ...], int8: str | None, int4: str | None) -> None:
    assert (scheme("int8", name, *shape), scheme("int4", name, *shape)) == (int8, int4)


def test_the_projection_to_logits_is_known_by_any_name() -> None:
    tied = "model.model.embed_tokens.weight"
    assert scheme("int4", tied, 320, 64) == "int4"
    assert scheme("int4", tied, 320, 64, logits=(tied,)) == "int8"


def test_the_first_rule_that_matches_decides() -> None:
    recipe = Recipe((Rule(LOGITS, ()), Rule("*.q", ("int4",)), Rule("*", ("int8",))))
    assert [recipe.scheme(name, (64, 64), ("out",)) for name in ("out", "a.q", "b")] == [None, SCHEMES["int4"], SCHEMES["int8"]]
    assert recipe.scheme("a.q", (64, 48)) is None  # nor does a later rule
    assert Recipe(()).scheme("b", (64, 64)) is None


def test_recipes_name_schemes_that_exist() -> None:
    assert all(
        name in (GPU_SCHEMES if recipe.gpu else SCHEMES)
        for recipe in RECIPES.values()
        for rule in recipe.rules
        for name in rule.schemes
    )
