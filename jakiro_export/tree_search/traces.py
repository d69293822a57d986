"""Draft traces: the tree that a draft phase proposes after every token of a text, compared with what the target said there.

Drafting sees the accepted tokens and their features alone, so the tree at a position does not depend on earlier rounds:
traced once at every position, the trees say what decoding accepts with any number of nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from jakiro_export.tracing import call_module
from jakiro_export.tree_search.texts import Text
from jakiro_runtime.backends.evaluate import Arrays, GraphCall, append_rows
from jakiro_runtime.contract import GraphContract
from jakiro_runtime.decoding.kv_cache import bucket
from jakiro_runtime.engine import Engine

_POSITIONS = 32  # drafted in one call


class DraftCall(NamedTuple):
    """A draft phase as a function under its contract: `call` takes every input by name and gives every output by name.

    levels: of its trees
    """

    call: Callable[..., Arrays]
    contract: GraphContract
    levels: int


@dataclass(frozen=True)
class DraftTrace:
    """The trees of one text, one for each position where a round may begin: after every token of the answer but the last ones.

    scores: cumulative log-probabilities, best first, [positions, nodes]
    ranks: at each position, the ranks by score of the nodes that the target would accept, from the root down
    nodes: the same nodes by their number in the tree, from 0
    """

    scores: np.ndarray
    ranks: list[list[int]]
    nodes: list[list[int]]


def torch_draft(module: nn.Module, contract: GraphContract, levels: int) -> DraftCall:
    """A draft phase in eager torch."""

    @torch.no_grad()
    def call(**inputs: np.ndarray) -> Arrays:
        return call_module(module, contract, inputs)

    return DraftCall(call, contract, levels)


def engine_draft(engine: Engine) -> DraftCall:
    """The draft phase as the engine runs it."""
    contract = engine.manifest.draft_contract
    return DraftCall(GraphCall(engine.bundle.draft, contract), contract, engine.manifest.draft.levels)


def trace(draft: DraftCall, text: Text) -> DraftTrace:
    """Draft at every position of a text's answer; the last `levels` tokens are only there to be predicted."""
    cache = _cache(draft, text)
    stop = max(text.first + 1, len(text.tokens) - draft.levels)
    positions = np.arange(text.first, stop)  # of a round's root: the last token that is known
    scores, ranks, nodes = [], [], []
    for part in np.array_split(positions, -(-len(positions) // _POSITIONS)):
        out = draft.call(
            **_inputs(draft.contract, text, part - 1), **{name: _repeat(array, len(part)) for name, array in cache.items()}
        )
        order = np.argsort(-out["tree_scores"], axis=1, kind="stable")  # [positions, nodes]
        scores.append(np.take_along_axis(out["tree_scores"], order, 1).astype(np.float64))
        for row, position in enumerate(part.tolist()):
            rank = np.argsort(order[row])
            path = accepted_path(out["tree_tokens"][row], out["tree_parents"][row], text.tokens[position + 1 :])
            ranks.append([int(rank[node]) for node in path])
            nodes.append(path)
    return DraftTrace(np.concatenate(scores), ranks, nodes)


def accepted_path(tokens: np.ndarray, parents: np.ndarray, continuation: np.ndarray) -> list[int]:
    """The nodes, from 0, on the path that a continuation takes down a tree: tokens and parents [nodes]."""
    path: list[int] = []
    for token in continuation.tolist():
        row = path[-1] + 1 if path else 0
        found = np.flatnonzero((parents == row) & (tokens == token))
        if not len(found):
            break
        path.append(int(found[0]))
    return path


def _repeat(array: np.ndarray, batch: int) -> np.ndarray:
    return np.broadcast_to(array, (batch, *array.shape[1:]))


def _inputs(contract: GraphContract, text: Text, rows: np.ndarray) -> Arrays:
    """Calls that draft after row p of the head's sequence (feature p, token p + 1), its cache holding the rows before it."""
    return {
        "input_ids": text.tokens[rows + 1][:, None],
        contract.features.name: text.features[rows][:, None],
        "position_ids": rows[:, None],
        "last_row": np.zeros(len(rows), np.int64),
        "past_length": rows,
    }


def _cache(draft: DraftCall, text: Text) -> Arrays:
    """The head's keys and values of a whole text by input name, [1, kv_heads, capacity, head_dim] each."""
    rows = len(text.tokens) - 1
    axes = {"batch": 1, "capacity": bucket(len(text.tokens))}
    cache = {spec.name: np.zeros(spec.shape(axes), np.float32) for spec in draft.contract.caches}
    inputs = {
        "input_ids": text.tokens[None, 1:],
        draft.contract.features.name: text.features[None, :-1],
        "position_ids": np.arange(rows)[None],
        "last_row": np.array([rows - 1]),
        "past_length": np.zeros(1, np.int64),
    }
    out = draft.call(**inputs, **cache)
    append_rows(cache, out, 0)
    return cache
