"""Candidates: the best next tokens of a row of logits, with their log-probabilities. Of equal logits the first counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnxscript import opset23
from torch import Tensor

from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import JAKIRO, CallSite, Example, Operand, Operator


def candidates(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best tokens of each row of logits [rows, vocab]: log-probabilities and tokens, [rows, count], best first."""
    best, index = logits.topk(count, dim=-1)
    top = best[:, :1]
    log_total = top + (logits - top).exp().sum(-1, keepdim=True).log()
    return best - log_total, index


# In a traced module: one node
fused_candidates = torch.library.custom_op("jakiro::candidates", candidates, mutates_args=())


@fused_candidates.register_fake
def _(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0], count), logits.new_empty(logits.shape[0], count, dtype=torch.int64)


def _translation(logits: Any, count: int) -> Any:
    return JAKIRO.Candidates(logits, opset23.Constant(value_ints=[count]), _outputs=2)


def _body(b: Body, site: CallSite) -> tuple[str, ...]:
    last = b.constant([-1])
    best, index = b.add_many("TopK", "logits", "count", outputs=2)
    top = b.add("ReduceMax", "logits", last, keepdims=1)
    total = b.add("ReduceSum", b.add("Exp", b.add("Sub", "logits", top)), last, keepdims=1)
    return b.add("Sub", best, b.add("Add", top, b.add("Log", total))), index


def _example(random: np.random.Generator) -> Example:
    return Example({"logits": random.standard_normal((5, 83)).astype(np.float32), "count": np.array([7])}, {})


OPERATORS = (
    Operator(
        name="Candidates",
        doc="The best tokens of each row and their log-probabilities, best first.",
        inputs=(Operand("logits", "float", "[rows, vocab]"), Operand("count", "int64", "[1]")),
        outputs=(Operand("log_probs", "float", "[rows, count]"), Operand("index", "int64", "[rows, count]")),
        eager=lambda logits, count: candidates(logits, int(count)),
        body=_body,
        translation=(torch.ops.jakiro.candidates.default, _translation),
        cpu_kernel=True,
        example=_example,
    ),
)
