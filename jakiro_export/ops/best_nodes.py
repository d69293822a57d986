"""Best nodes: the tree that is kept of all candidates. Of equal scores the first counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnxscript import opset23
from torch import Tensor

from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import JAKIRO, CallSite, Example, Operand, Operator


def best_nodes(scores: Tensor, tokens: Tensor, parents: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best of all candidates [batch, candidates], in candidate order, so that a parent precedes its child.

    Args:
        parents: candidate numbers, -1 for children of the root; no candidate's score is above its parent's

    Returns:
        tokens, parents and scores, [batch, count]; parents are numbered among the kept nodes from 1, 0 is the root
    """
    _, best = scores.topk(count, dim=-1)
    kept, _ = torch.topk(best, count, dim=-1, largest=False)  # ascending: [batch, count]
    parent = torch.gather(parents, 1, kept)
    place = (kept[:, None, :] == parent[:, :, None]).int()  # [batch, count, count]
    number = torch.arange(1, count + 1, dtype=torch.int32, device=kept.device)
    tree_parents = (place * number).sum(-1).to(torch.int64)  # 0, the root, where no node matches
    return torch.gather(tokens, 1, kept), tree_parents, torch.gather(scores, 1, kept)


# In a traced module: one node
fused_best_nodes = torch.library.custom_op("jakiro::best_nodes", best_nodes, mutates_args=())


@fused_best_nodes.register_fake
def _(scores: Tensor, tokens: Tensor, parents: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    size = (scores.shape[0], count)
    return tokens.new_empty(size), tokens.new_empty(size), scores.new_empty(size)


def _translation(scores: Any, tokens: Any, parents: Any, count: int) -> Any:
    return JAKIRO.BestNodes(scores, tokens, parents, opset23.Constant(value_ints=[count]), _outputs=3)


def _body(b: Body, site: CallSite) -> tuple[str, ...]:
    last, one, zero = b.constant([-1]), b.constant(1), b.constant(0)
    _, best = b.add_many("TopK", "scores", "count", outputs=2)
    kept, _ = b.add_many("TopK", best, "count", outputs=2, largest=0)
    parent = b.add("GatherElements", "parents", kept, axis=1)
    same = b.add("Equal", b.add("Unsqueeze", kept, b.constant([1])), b.add("Unsqueeze", parent, last))
    numbers = b.add("Range", one, b.add("Add", b.add("Squeeze", "count"), one), one)
    tree_parents = b.add("ReduceSum", b.add("Where", same, numbers, zero), last, keepdims=0)
    return (
        b.add("GatherElements", "tokens", kept, axis=1),
        tree_parents,
        b.add("GatherElements", "scores", kept, axis=1),
    )


def _example(random: np.random.Generator) -> Example:
    parents = np.array([[-1, -1, -1, *random.integers(0, 3, 5), *random.integers(3, 8, 12)] for _ in range(2)])
    scores = np.zeros(parents.shape, np.float32)
    for row, column in np.ndindex(*parents.shape):
        above = 0 if parents[row, column] < 0 else scores[row, parents[row, column]]
        scores[row, column] = above - random.random()
    return Example({"scores": scores, "tokens": np.arange(40).reshape(2, 20), "parents": parents, "count": np.array([9])}, {})


_ALL, _KEPT = "[batch, candidates]", "[batch, count]"
OPERATORS = (
    Operator(
        name="BestNodes",
        doc="The best candidates, in candidate order, with parents numbered among them from 1; 0 is the root.",
        inputs=(
            Operand("scores", "float", _ALL),
            Operand("tokens", "int64", _ALL),
            Operand("parents", "int64", _ALL),
            Operand("count", "int64", "[1]"),
        ),
        outputs=(
            Operand("tree_tokens", "int64", _KEPT),
            Operand("tree_parents", "int64", _KEPT),
            Operand("tree_scores", "float", _KEPT),
        ),
        eager=lambda scores, tokens, parents, count: best_nodes(scores, tokens, parents, int(count)),
        body=_body,
        translation=(torch.ops.jakiro.best_nodes.default, _translation),
        cpu_kernel=True,
        example=_example,
    ),
)
