"""Best token: the first of the largest logits."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import CallSite, Example, Operand, Operator

NAME = "BestToken"


def best_token(logits: Tensor) -> Tensor:
    """The first of the largest logits [..., vocab], int64 [...]."""
    return logits.argmax(-1)


def _body(b: Body, site: CallSite) -> tuple[str, ...]:
    return (b.add("ArgMax", "logits", axis=-1, keepdims=0),)


def _example(random: np.random.Generator) -> Example:
    return Example({"logits": random.integers(0, 40, (2, 5, 83)).astype(np.float32)}, {})  # with ties


OPERATORS = (
    Operator(
        name=NAME,
        doc="The first of the largest logits.",
        inputs=(Operand("logits", "float", "[..., vocab]"),),
        outputs=(Operand("best_token", "int64", "[...]"),),
        eager=best_token,
        body=_body,
        cpu_kernel=True,
        example=_example,
    ),
)
