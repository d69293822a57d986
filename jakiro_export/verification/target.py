"""The target's graph against transformers.

Every case is a call that the runtime makes: a prompt, a step over a long past, a tree, a batch of different lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from jakiro_export.plan import TargetPlan
from jakiro_export.verification.check import TOLERANCE, Check, difference_in
from jakiro_export.verification.reference import reference
from jakiro_runtime.backends.evaluate import Arrays, GraphCall, append_rows, causal_mask

_CAPACITY, _RANDOM_TOKENS = 256, 96


def check_target(graph: GraphCall, plan: TargetPlan, prompt: np.ndarray) -> Iterator[Check]:
    """Compare the target's graph with transformers.

    Args:
        prompt: the token ids of a real prompt, [tokens], 16 of them at least
    """
    model, rng = plan.checkpoint.model(), np.random.default_rng(0)
    tolerance, difference = TOLERANCE[plan.precision.name], difference_in(plan.precision)
    vocab = int(plan.checkpoint.config.vocab_size)
    random = rng.integers(0, vocab, _RANDOM_TOKENS)

    for name, tokens in (("real prompt", prompt), ("random tokens", random)):
        logits, features = reference(model, tokens, plan.feature_layers)
        out = _chain(graph, tokens, 0, graph.empty_cache(1, _CAPACITY))
        yield Check(f"{name}, {len(tokens)} rows, no past: logits", difference(out["logits"][0], logits), tolerance)
        yield Check(f"{name}: features", difference(out[graph.contract.features.name][0], features), tolerance)
        agree = out["next_tokens"][0] == out["logits"][0].argmax(-1)
        yield Check(f"{name}: next_tokens is not the best logit", float(1 - agree.mean()), 0.0)

    # a long past, committed in chunks, then one row and then a tree over it
    logits, _ = reference(model, random)
    cache, start = graph.empty_cache(1, _CAPACITY), 0
    for chunk in np.split(random[:-1], [37, 70]):
        append_rows(cache, _chain(graph, chunk, start, cache), start)
        start += len(chunk)
    out = _chain(graph, random[-1:], start, cache)
    yield Check(f"one row, past of {start}: logits", difference(out["logits"][0, 0], logits[-1]), tolerance)

    parents, visible = _tree(rng, 11)
    tokens = np.concatenate([random[-1:], rng.integers(0, vocab, len(parents) - 1)])
    out = _rows(graph, tokens, start + visible.sum(-1) - 1, visible[None], start, cache)
    worst = 0.0
    for leaf in np.setdiff1d(np.arange(1, len(parents)), parents[1:]):
        path = np.flatnonzero(visible[leaf])
        expected, _ = reference(model, np.concatenate([random[:-1], tokens[path]]))
        worst = max(worst, difference(out["logits"][0, path], expected[start:]))
    yield Check(f"random tree of {len(parents)} rows, past of {start}: logits", worst, tolerance)

    yield _check_batch(graph, cache, random, prompt, model, plan)


def _rows(graph: GraphCall, tokens: np.ndarray, positions: np.ndarray, mask: np.ndarray, past: int, cache: Arrays) -> Arrays:
    """One sequence's pass over tokens [rows], logits wanted after each."""
    return graph(
        input_ids=tokens[None],
        position_ids=positions[None],
        tree_mask=mask,
        past_length=np.array([past]),
        logit_rows=np.arange(len(tokens))[None],
        **cache,
    )


def _chain(graph: GraphCall, tokens: np.ndarray, past: int, cache: Arrays) -> Arrays:
    """The same over tokens that follow each other."""
    return _rows(graph, tokens, np.arange(past, past + len(tokens)), causal_mask(len(tokens)), past, cache)


def _tree(rng: np.random.Generator, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """A random tree under a root: parents [nodes + 1] (the root is its own), visibility [nodes + 1, nodes + 1]."""
    parents = np.array([0] + [int(rng.integers(0, n)) for n in range(1, nodes + 1)])
    visible = np.eye(nodes + 1, dtype=bool)
    for node in range(1, nodes + 1):
        visible[node] |= visible[parents[node]]
    return parents, visible


def _check_batch(
    graph: GraphCall, cache: Arrays, long: np.ndarray, short: np.ndarray, model: nn.Module, plan: TargetPlan
) -> Check:
    """Two sequences with pasts of different lengths in one call; `cache` holds the first one's."""
    difference = difference_in(plan.precision)
    both = {name: np.concatenate([value, np.zeros_like(value)]) for name, value in cache.items()}
    split = len(short) - 3
    single = {name: value[1:] for name, value in both.items()}
    append_rows(single, _chain(graph, short[:split], 0, single), 0)
    starts = np.array([len(long) - 3, split])
    out = graph(
        input_ids=np.stack([long[-3:], short[-3:]]),
        position_ids=starts[:, None] + np.arange(3),
        tree_mask=causal_mask(3, 2),
        past_length=starts,
        logit_rows=np.array([[0, 1, 2], [0, 1, 2]]),
        **both,
    )
    worst = max(
        difference(out["logits"][0], reference(model, long)[0][-3:]),
        difference(out["logits"][1], reference(model, short)[0][-3:]),
    )
    return Check(f"batch of 2, pasts of {starts[0]} and {starts[1]}: logits", worst, TOLERANCE[plan.precision.name])
