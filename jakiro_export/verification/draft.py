"""The draft graph against the draft phase in eager torch: the same tree, the same scores, the same keys."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from jakiro_export.artifact.weights import LazyWeight
from jakiro_export.graphs import draft_model, draft_weights
from jakiro_export.heads.model import DraftModel
from jakiro_export.plan import DraftPlan
from jakiro_export.tracing import call_module
from jakiro_export.verification.check import TOLERANCE, Check, largest_difference
from jakiro_runtime.backends.evaluate import Arrays, GraphCall, append_rows
from jakiro_runtime.contract import new_rows_of

_CAPACITY = 256


def load_draft(plan: DraftPlan) -> DraftModel:
    """The draft phase in eager torch, float32, with the weights that the graph was given."""
    model = draft_model(plan)
    state, weights = model.state_dict(), draft_weights(plan)
    model.load_state_dict({name: torch.from_numpy(LazyWeight(weights[name], name).numpy().copy()) for name in state})
    return model.float().eval()


@torch.no_grad()
def check_draft(graph: GraphCall, plan: DraftPlan, text: np.ndarray, features: np.ndarray) -> Iterator[Check]:
    """Compare the draft graph with eager torch.

    What it is fed is what it meets in use: a text, and a past that the graph itself wrote. A trained head is chaotic elsewhere;
    after one random token, whose features are a sink's, int8 moved scores by more than 1.

    Args:
        text: token ids, [tokens]
        features: the target's of them, [tokens, width]
    """
    model, precision = load_draft(plan), plan.precision
    tolerance = TOLERANCE[precision.name]
    for name, batch, rows, past in (
        ("a prompt, no past", 1, 40, 0),
        ("one row, past of 90", 1, 1, 90),
        ("padded rows, past of 200", 1, 7, 200),
        ("batch of 2", 2, 5, 60),
    ):
        places = np.resize(np.arange(len(text) - 1), (batch, past + rows))
        cache = graph.empty_cache(batch, _CAPACITY)
        if past:
            written = graph(**_inputs(graph, text, features, places[:, :past], 0, past - 1), **cache)
            for row in range(batch):
                append_rows(cache, written, 0, row)
        last = max(0, rows - 3) if "padded" in name else rows - 1
        inputs = _inputs(graph, text, features, places[:, past:], past, last)
        out, expected = graph(**inputs, **cache), _eager(model, graph, {**inputs, **cache})
        scores = np.abs(np.sort(out["tree_scores"], -1) - np.sort(expected["tree_scores"], -1)).max()
        # rounding moves scores, and nodes of like score change places
        yield Check(f"draft, {name}: tree scores", float(scores), 1.0 if precision.quantized else 5 * tolerance)
        keys = [new_rows_of(spec.name) for spec in graph.contract.caches if "key" in spec.name]
        moved = max(largest_difference(out[key], expected[key]) for key in keys)
        yield Check(f"draft, {name}: keys", moved, tolerance)
        if not precision.quantized:
            same = (out["tree_tokens"] == expected["tree_tokens"]) & (out["tree_parents"] == expected["tree_parents"])
            # two candidates of nearly the same score may change places; exact trees are the tests' business
            yield Check(f"draft, {name}: share of nodes that differ", float(1 - same.mean()), 0.5)


def _inputs(graph: GraphCall, text: np.ndarray, features: np.ndarray, places: np.ndarray, past: int, last: int) -> Arrays:
    """A call of the draft phase after `past` rows: the features at `places` [batch, rows] and the token after each."""
    batch, rows = places.shape
    return {
        "input_ids": text[places + 1],
        graph.contract.features.name: features[places],
        "position_ids": np.tile(np.arange(past, past + rows), (batch, 1)),
        "last_row": np.full(batch, last),
        "past_length": np.full(batch, past),
    }


def _eager(model: DraftModel, graph: GraphCall, inputs: Arrays) -> Arrays:
    """The same call in torch, in float32."""
    return call_module(model, graph.contract, {name: np.asarray(inputs[name]) for name in graph.contract.input_names})
