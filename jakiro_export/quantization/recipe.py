"""Quantisation recipes: which matrix of a graph gets which scheme, as data.

Embeddings and norms are no matmuls and stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from jakiro_export.errors import UsageError
from jakiro_export.quantization.scheme import Scheme
from jakiro_export.quantization.schemes import GPU_SCHEMES, SCHEMES

LOGITS = "logits"  # how a recipe knows the projection to logits, whatever the checkpoint calls it
DRAFT_LOGITS = "draft_logits"  # and that of the draft phase; a recipe without it means both by LOGITS
DRAFT_PROJECTION = "projection"  # its name in the draft graph


class Rule(NamedTuple):
    """matrices: a pattern over names of weights, or LOGITS; schemes: by preference, the first that fits the shape is taken."""

    matrices: str
    schemes: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """Rules; the first that matches a name decides. A matrix without a rule, or whose schemes all do not fit, stays as it is.

    gpu: schemes are those for GPUs, and nothing but matmuls is rewritten
    """

    rules: tuple[Rule, ...]
    gpu: bool = False

    def scheme(self, name: str, shape: tuple[int, ...], logits: Collection[str] = ()) -> Scheme | None:
        """The scheme of a matrix [out, in]; None where it is not quantised.

        logits: the names of the projection to logits
        """
        known_as: tuple[str, ...] = (name,)
        schemes = GPU_SCHEMES if self.gpu else SCHEMES
        if name in logits:
            known_as = (DRAFT_LOGITS, LOGITS) if name == DRAFT_PROJECTION else (LOGITS,)
        names = next((rule.schemes for rule in self.rules if any(fnmatchcase(each, rule.matrices) for each in known_as)), ())
        return next((schemes[each] for each in names if schemes[each].fits(shape)), None)


_ROUTER = Rule("head.router.weight", ())  # a few outputs that choose between experts
# A recipe is known by the precision that asks for it. The projection to logits decides between tokens that are nearly tied, and
# the head is small: both stay in int8 where layers are in int4. On a GPU the draft phase reads its projection once a level: there
# it has as few bits as there are, and so has the head.
RECIPES: Mapping[str, Recipe] = {
    "int8": Recipe((_ROUTER, Rule("*", ("int8",)))),
    "int4": Recipe((_ROUTER, Rule(LOGITS, ("int8",)), Rule("head.*", ("int8",)), Rule("*", ("int4", "int8")))),
    "w4a16": Recipe((_ROUTER, Rule(DRAFT_LOGITS, ("w4",)), Rule(LOGITS, ("w8a16",)), Rule("*", ("w4", "w8a16"))), gpu=True),
    "w8a8": Recipe((_ROUTER, Rule(DRAFT_LOGITS, ("w8a16",)), Rule(LOGITS, ("w8a16",)), Rule("*", ("w8a8",))), gpu=True),
    "fp8": Recipe((_ROUTER, Rule(DRAFT_LOGITS, ("fp8a16",)), Rule(LOGITS, ("fp8a16",)), Rule("*", ("fp8",))), gpu=True),
    "nvfp4": Recipe(
        (_ROUTER, Rule(DRAFT_LOGITS, ("nvfp4a16",)), Rule(LOGITS, ("fp8a16",)), Rule("*", ("nvfp4", "fp8"))), gpu=True
    ),
}

# After activation-aware scaling the largest weights are those that matter: no range is cut there
SCALED = Recipe(
    (_ROUTER, Rule("head.*", ("w4",)), Rule(DRAFT_LOGITS, ("w4",)), Rule(LOGITS, ("w8a16",)), Rule("*", ("w4-nearest", "w8a16"))),
    gpu=True,
)


def read_recipe(file: Path, gpu: bool) -> Recipe:
    """A recipe from a JSON file: {"rules": [{"matrices": "*.layers.0.*", "schemes": ["w8a16"]}, ...]}; the first that matches
    decides.

    Projections of one input (query, key and value; gate and up) are one matmul, whose name is theirs joined by "+".

    Raises:
        UsageError: it is no such object, or names a scheme that there is not for this kind of device
    """
    known, expected = GPU_SCHEMES if gpu else SCHEMES, 'an object {"rules": [{"matrices": PATTERN, "schemes": [NAME, ...]}, ...]}'
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"The recipe {file} cannot be read ({type(error).__name__}: {error}).") from error
    rules = data.get("rules") if isinstance(data, dict) and set(data) == {"rules"} else None
    if not isinstance(rules, list):
        raise UsageError(f"The recipe {file} is not {expected}.")
    found = []
    for number, rule in enumerate(rules):
        names = rule.get("schemes") if isinstance(rule, dict) and set(rule) == {"matrices", "schemes"} else None
        if (
            not isinstance(names, list)
            or not isinstance(rule["matrices"], str)
            or not all(isinstance(each, str) for each in names)
        ):
            raise UsageError(f"Rule {number} of the recipe {file} is not one of {expected}.")
        wrong = next((each for each in names if each not in known), None)
        if wrong is not None:
            raise UsageError(
                f"Rule {number} of the recipe {file} names the scheme {wrong!r}; for this precision there are "
                f"{', '.join(known)}, or an empty list, which leaves matrices as they are."
            )
        found.append(Rule(rule["matrices"], tuple(names)))
    return Recipe(tuple(found), gpu)
