"""How a draft phase chooses: candidates of a row, what a beam proposes, the nodes that are kept. In torch, and for int8 graphs as
single operators with bodies in standard ones; on a CPU such a step costs what its operators cost to start.

    Candidates(logits [rows, vocab], count [1]) -> log_probs [rows, count], index int64 [rows, count], best first
    Propose(scores [batch, beam], log_probs [batch, beam, top_k], tokens int64, numbers int64 [batch, beam])
        -> totals, tokens, parents [batch, beam * top_k]: what each beam entry proposes, with the entry's number as its parent
    BestNodes(scores [batch, candidates], tokens, parents int64, count [1]) -> tokens, parents, scores [batch, count]: the best,
        in candidate order, so that a parent precedes its child; parents are numbered among them from 1, 0 is the root
    MixExperts(router_logits [rows, 4], first, second [rows, hidden]) -> primary, contrast (see `graph.dispatch`)

Of equal scores the first counts, as ONNX's TopK has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from jakiro_export.ops import DOMAIN

CANDIDATES, PROPOSE, BEST_NODES, MIX_EXPERTS = "Candidates", "Propose", "BestNodes", "MixExperts"
_F, _I = "tensor(float)", "tensor(int64)"
_SIGNATURES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    CANDIDATES: ({"logits": _F, "count": _I}, {"log_probs": _F, "index": _I}),
    PROPOSE: (
        {"scores": _F, "log_probs": _F, "tokens": _I, "numbers": _I},
        {"totals": _F, "proposed": _I, "parents": _I},
    ),
    BEST_NODES: (
        {"scores": _F, "tokens": _I, "parents": _I, "count": _I},
        {"tree_tokens": _I, "tree_parents": _I, "tree_scores": _F},
    ),
    MIX_EXPERTS: ({"router_logits": _F, "first": _F, "second": _F}, {"primary": _F, "contrast": _F}),
}


def _register() -> None:
    schema = onnx.defs.OpSchema
    for name, (inputs, outputs) in _SIGNATURES.items():
        if not onnx.defs.has(name, DOMAIN):
            ins = [schema.FormalParameter(each, kind) for each, kind in inputs.items()]
            outs = [schema.FormalParameter(each, kind) for each, kind in outputs.items()]
            onnx.defs.register_schema(schema(name, DOMAIN, 1, inputs=ins, outputs=outs))


_register()


def candidates(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best tokens of each row and their log-probabilities; shapes as above."""
    best, index = logits.topk(count, dim=-1)
    top = best[:, :1]
    log_total = top + (logits - top).exp().sum(-1, keepdim=True).log()
    return best - log_total, index


def propose(scores: Tensor, log_probs: Tensor, tokens: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every candidate of a beam; shapes as above."""
    width = log_probs.shape[-1]
    totals = (scores[:, :, None] + log_probs).flatten(1)
    return totals, tokens.flatten(1), numbers[:, :, None].expand(-1, -1, width).flatten(1)


def best_nodes(scores: Tensor, tokens: Tensor, parents: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tree that is kept of all candidates; shapes as above."""
    _, best = scores.topk(count, dim=-1)
    kept, _ = torch.topk(best, count, dim=-1, largest=False)  # ascending: [batch, count]
    parent = torch.gather(parents, 1, kept)
    place = (kept[:, None, :] == parent[:, :, None]).int()  # [batch, count, count]
    number = torch.arange(1, count + 1, dtype=torch.int32, device=kept.device)
    tree_parents = (place * number).sum(-1).to(torch.int64)  # 0, the root, where no node matches
    return torch.gather(tokens, 1, kept), tree_parents, torch.gather(scores, 1, kept)


def functions(opset: int) -> list[onnx.FunctionProto]:
    """The operators' bodies in standard ONNX operators."""
    return [_body(name, opset) for name in _SIGNATURES]


def _body(name: str, opset: int) -> onnx.FunctionProto:
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, list(outputs), **attributes))
        return outputs[0]

    def constant(name: str, value: Any) -> str:
        return add("Constant", [], name, value=numpy_helper.from_array(np.asarray(value), name))

    last = constant("last", np.array([-1]))
    if name == CANDIDATES:
        add("TopK", ["logits", "count"], "best", "index")
        top = add("ReduceMax", ["logits", last], "top", keepdims=1)
        total = add("ReduceSum", [add("Exp", [add("Sub", ["logits", top], "below")], "shares"), last], "total", keepdims=1)
        add("Sub", ["best", add("Add", [top, add("Log", [total], "log")], "log_total")], "log_probs")
    elif name == PROPOSE:
        flat = constant("flat", np.array([0, -1]))
        add("Add", [add("Unsqueeze", ["scores", last], "column"), "log_probs"], "sums")
        shape = add("Shape", ["log_probs"], "shape")
        add("Reshape", ["sums", flat], "totals")
        add("Reshape", ["tokens", flat], "proposed")
        add("Reshape", [add("Expand", [add("Unsqueeze", ["numbers", last], "number"), shape], "every"), flat], "parents")
    elif name == BEST_NODES:
        add("TopK", ["scores", "count"], "best_scores", "best")
        add("TopK", ["best", "count"], "kept", "kept_place", largest=0)
        parent = add("GatherElements", ["parents", "kept"], "parent", axis=1)
        axes = constant("middle", np.array([1]))
        same = add("Equal", [add("Unsqueeze", ["kept", axes], "across"), add("Unsqueeze", [parent, last], "down")], "same")
        one = constant("one", np.array(1))
        until = add("Add", [add("Squeeze", ["count"], "many"), one], "until")
        add("Range", [one, until, one], "numbers")
        zero = constant("zero", np.array(0))
        add("ReduceSum", [add("Where", [same, "numbers", zero], "matched"), last], "tree_parents", keepdims=0)
        add("GatherElements", ["tokens", "kept"], "tree_tokens", axis=1)
        add("GatherElements", ["scores", "kept"], "tree_scores", axis=1)
    else:
        halves = constant("halves", np.array([2, 2]))
        add("Split", ["router_logits", halves], "for_sum", "for_difference", axis=-1)
        add("Split", [add("Softmax", ["for_sum"], "weights", axis=-1)], "w0", "w1", axis=-1, num_outputs=2)
        add("Add", [add("Mul", ["w0", "first"], "a"), add("Mul", ["w1", "second"], "b")], "primary")
        add("Split", [add("Softmax", ["for_difference"], "shares", axis=-1)], "p0", "p1", axis=-1, num_outputs=2)
        add("Sub", [add("Mul", ["p0", "first"], "c"), add("Mul", ["p1", "second"], "d")], "difference")
        turned = add("Neg", ["difference"], "turned")
        add("Where", [add("Greater", ["p0", "p1"], "ahead"), "difference", turned], "contrast")
    inputs, outputs = (list(each) for each in _SIGNATURES[name])
    return helper.make_function(DOMAIN, name, inputs, outputs, nodes, [helper.make_opsetid("", opset)])
