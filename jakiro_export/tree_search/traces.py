"""The trees of a draft phase at every place of a text, held against what the target said there.

Drafting sees the accepted tokens and their features alone, so the tree at a place does not depend on the rounds that led there:
grown once everywhere, they tell what decoding would accept with any number of nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from jakiro_export.tree_search.texts import Text
from jakiro_runtime.decoding.kv_cache import bucket
from jakiro_runtime.engine import Engine

Arrays = dict[str, np.ndarray]


class Phase(NamedTuple):
    """A draft phase under the graph contract: run takes its inputs by name and gives its outputs by name."""

    run: Callable[[Arrays], Arrays]
    kv_heads: int
    head_dim: int
    levels: int


_PLACES = 32  # drafted in one call
_OUTPUTS = ("tree_tokens", "tree_parents", "tree_scores", "new_key", "new_value")


@dataclass(frozen=True)
class Grown:
    """The trees of one text, one for each place where a round may begin: behind every token of the answer but the last ones.

    scores: cumulative log-probabilities, best first, [places, nodes]
    ranks: at each place, the ranks by score of the nodes that the target would accept, on the way down
    """

    scores: np.ndarray
    ranks: list[list[int]]


def torch_phase(module: nn.Module, kv_heads: int, head_dim: int, levels: int) -> Phase:
    """A draft phase in eager torch."""

    @torch.no_grad()
    def run(inputs: Arrays) -> Arrays:
        outputs = module(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
        return {name: value.numpy() for name, value in zip(_OUTPUTS, outputs, strict=True)}

    return Phase(run, kv_heads, head_dim, levels)


def engine_phase(engine: Engine) -> Phase:
    """The draft phase as the engine runs it."""
    graph, draft = engine.bundle.draft, engine.manifest.draft

    def run(inputs: Arrays) -> Arrays:
        batch, rows = inputs["input_ids"].shape
        keys = (batch, draft.num_kv_heads, rows, draft.head_dim)
        shapes = [(batch, draft.nodes)] * 3 + [keys] * 2
        outputs = {name: np.empty(shape, graph.outputs[name]) for name, shape in zip(_OUTPUTS, shapes, strict=True)}
        typed = {name: np.ascontiguousarray(value, graph.inputs[name]) for name, value in inputs.items()}
        graph.bind(typed, outputs).run()
        return outputs

    return Phase(run, draft.num_kv_heads, draft.head_dim, draft.levels)


def grow(phase: Phase, text: Text) -> Grown:
    """Draft at every place of a text's answer; the last `levels` tokens are only there to be predicted."""
    keys, values = _keys(phase, text)
    stop = max(text.first + 1, len(text.tokens) - phase.levels)
    places = np.arange(text.first, stop)  # of a round's root: the last token that is known
    scores, ranks = [], []
    for part in np.array_split(places, -(-len(places) // _PLACES)):
        out = phase.run(_inputs(text, part - 1, keys, values))
        order = np.argsort(-out["tree_scores"], axis=1, kind="stable")
        scores.append(np.take_along_axis(out["tree_scores"], order, 1).astype(np.float64))
        for row, place in enumerate(part.tolist()):
            rank = np.argsort(order[row])
            path = accepted(out["tree_tokens"][row], out["tree_parents"][row], text.tokens[place + 1 :])
            ranks.append([int(rank[node]) for node in path])
    return Grown(np.concatenate(scores), ranks)


def accepted(tokens: np.ndarray, parents: np.ndarray, said: np.ndarray) -> list[int]:
    """The nodes, from 0, on the way that the target's tokens take down a tree: tokens and parents [nodes]."""
    path: list[int] = []
    for token in said.tolist():
        row = path[-1] + 1 if path else 0
        found = np.flatnonzero((parents == row) & (tokens == token))
        if not len(found):
            break
        path.append(int(found[0]))
    return path


def _inputs(text: Text, rows: np.ndarray, keys: np.ndarray, values: np.ndarray) -> Arrays:
    """Calls that draft behind row p of the head's sequence (feature p, token p + 1), its cache holding the rows before it."""
    wide = (len(rows), *keys.shape[1:])
    return {
        "input_ids": text.tokens[rows + 1][:, None],
        "hidden_states": text.features[rows][:, None],
        "position_ids": rows[:, None],
        "last_row": np.zeros(len(rows), np.int64),
        "past_length": rows,
        "past_key": np.broadcast_to(keys, wide),
        "past_value": np.broadcast_to(values, wide),
    }


def _keys(phase: Phase, text: Text) -> tuple[np.ndarray, np.ndarray]:
    """The head's keys and values of a whole text, [1, kv_heads, capacity, head_dim]."""
    rows, capacity = len(text.tokens) - 1, bucket(len(text.tokens))
    empty = np.zeros((1, phase.kv_heads, capacity, phase.head_dim), np.float32)
    out = phase.run(
        {
            "input_ids": text.tokens[None, 1:],
            "hidden_states": text.features[None, :-1],
            "position_ids": np.arange(rows)[None],
            "last_row": np.array([rows - 1]),
            "past_length": np.zeros(1, np.int64),
            "past_key": empty,
            "past_value": empty.copy(),
        }
    )
    keys, values = empty.copy(), empty.copy()
    keys[:, :, :rows], values[:, :, :rows] = out["new_key"], out["new_value"]
    return keys, values
