"""Quantisation recipes: which matrix of a graph gets which scheme, as data.

Embeddings and norms are no matmuls and stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from jakiro_export.quantization.scheme import Scheme
from jakiro_export.quantization.schemes import SCHEMES

LOGITS = "logits"  # how a recipe knows the projection to logits, whatever the checkpoint calls it


class Rule(NamedTuple):
    """matrices: a pattern over names of weights, or LOGITS; schemes: by preference, the first that fits the shape is taken."""

    matrices: str
    schemes: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """Rules; the first that matches a name decides. A matrix without a rule, or whose schemes all do not fit, stays as it is."""

    rules: tuple[Rule, ...]

    def scheme(self, name: str, shape: tuple[int, ...], logits: Collection[str] = ()) -> Scheme | None:
        """The scheme of a matrix [out, in]; None where it is not quantised.

        logits: the names of the projection to logits
        """
        known_as = LOGITS if name in logits else name
        names = next((rule.schemes for rule in self.rules if fnmatchcase(known_as, rule.matrices)), ())
        return next((SCHEMES[each] for each in names if SCHEMES[each].fits(shape)), None)


_ROUTER = Rule("head.router.weight", ())  # a few outputs that choose between experts
# A recipe is known by the precision that asks for it. The projection to logits decides between tokens that are nearly tied, and
# the head is small: both stay in int8 where layers are in int4.
RECIPES: Mapping[str, Recipe] = {
    "int8": Recipe((_ROUTER, Rule("*", ("int8",)))),
    "int4": Recipe((_ROUTER, Rule(LOGITS, ("int8",)), Rule("head.*", ("int8",)), Rule("*", ("int4", "int8")))),
}
