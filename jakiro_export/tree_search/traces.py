"""Draft traces: the tree that a draft phase proposes after every token of a text, compared with what the target said there.

Drafting sees the accepted tokens and their features alone, so the tree at a position does not depend on earlier rounds:
traced once at every position, the trees say what decoding accepts with any number of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
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

    tree_scores: cumulative log-probabilities in the tree's order, [positions, nodes]
    accepted: at each position, the nodes that the target would accept, from the root down, by their number from 0
    scores: as tree_scores, best first
    ranks: as accepted, by their rank among the scores
    """

    tree_scores: np.ndarray
    accepted: list[list[int]]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(-self.tree_scores, axis=1, kind="stable")

    @cached_property
    def scores(self) -> np.ndarray:
        return np.take_along_axis(self.tree_scores, self._order, 1)

    @cached_property
    def ranks(self) -> list[list[int]]:
        places = np.argsort(self._order, axis=1)
        return [places[row, path].tolist() for row, path in enumerate(self.accepted)]

    def only(self, nodes: Sequence[int]) -> DraftTrace:
        """The same of a tree that has these of its nodes alone, ascending, each with its parent; for trees of fixed paths.

        What such a tree drafts for a node depends on the nodes above it alone.
        """
        place = {node: number for number, node in enumerate(nodes)}
        kept = [[place[node] for node in path if node in place] for path in self.accepted]
        return DraftTrace(self.tree_scores[:, list(nodes)], kept)


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
    scores, accepted = [], []
    for part in np.array_split(positions, -(-len(positions) // _POSITIONS)):
        out = draft.call(
            **_inputs(draft.contract, text, part - 1), **{name: _repeat(array, len(part)) for name, array in cache.items()}
        )
        scores.append(out["tree_scores"].astype(np.float64))
        for row, position in enumerate(part.tolist()):
            trees = (out["tree_tokens"][row], out["tree_parents"][row])
            accepted.append(accepted_path(*trees, text.tokens[position + 1 :]))
    return DraftTrace(np.concatenate(scores), accepted)


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
