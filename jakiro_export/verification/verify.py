"""Does what was written compute what torch computes? ONNX Runtime on the files, against transformers and eager torch.

The target is compared with transformers' model as it comes, with none of the exporter's hooks. Every case is a call the runtime
makes: a prompt, a step over a long past, a tree, a batch of different lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jakiro_export.artifact.weights import LazyWeight
from jakiro_export.checkpoints.head import HeadCheckpoint
from jakiro_export.checkpoints.target import Target
from jakiro_export.graphs import QUANTIZED, GraphOptions, draft_module, draft_weights
from jakiro_runtime.kernels import library, needed

Arrays = dict[str, np.ndarray]

# Largest difference of a logit, as a share of the reference's spread (its standard deviation). fp32 differs by the order of
# sums; fp16 also by its rounding of every activation, here on a CPU that emulates it; int8 and int4 of a typical row
# (`_typical`). Four bits round the weights of a target that was not in four bits before.
TOLERANCE = {"fp32": 2e-3, "fp16": 0.15, "int8": 1.0, "int4": 2.0}
# Quality on a text, against torch in float32: the share of positions with another best token, and how much perplexity rises.
DISAGREEMENT = {"fp32": 0.01, "fp16": 0.05, "int8": 0.1, "int4": 0.25}
PERPLEXITY = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.03, "int4": 0.15}


@dataclass(frozen=True)
class Check:
    """One comparison: a figure, what it may be at most, and what that means."""

    name: str
    value: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return bool(self.value <= self.tolerance)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


class _Graph:
    """An ONNX file opened for checking: named arrays in, named arrays out."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        kernels = library() if needed(path) else None
        if kernels is not None:
            options.register_custom_ops_library(str(kernels))
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
        self.float_inputs = {
            each.name: (each.shape, kinds[each.type]) for each in self.session.get_inputs() if each.type in kinds
        }

    def __call__(self, **inputs: np.ndarray) -> Arrays:
        cast = {
            name: value.astype(self.float_inputs[name][1]) if name in self.float_inputs else value
            for name, value in inputs.items()
        }
        return dict(zip(self.outputs, self.session.run(None, cast), strict=True))

    def empty_cache(self, batch: int, capacity: int) -> Arrays:
        caches = {name: kind for name, kind in self.float_inputs.items() if name.startswith("past_")}
        return {name: np.zeros((batch, shape[1], capacity, shape[3]), kind) for name, (shape, kind) in caches.items()}


def _difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference, in units of the reference's standard deviation."""
    spread = float(reference.std()) or 1.0
    return float(np.abs(ours.astype(np.float64) - reference.astype(np.float64)).max() / spread)


def _typical(ours: np.ndarray, reference: np.ndarray) -> float:
    """The median over rows of a row's largest difference, in units of the reference's standard deviation.

    For int8 and int4: among random tokens there are rows that any rounding throws far off, by making or unmaking a sink of
    attention.
    """
    spread = float(reference.std()) or 1.0
    rows = np.abs(ours.astype(np.float64) - reference.astype(np.float64)).reshape(-1, ours.shape[-1])
    return float(np.median(rows.max(-1)) / spread)


def _causal(rows: int) -> np.ndarray:
    return np.tril(np.ones((1, rows, rows), bool))


def _append(cache: Arrays, outputs: Arrays, start: int, row: int = 0) -> None:
    """Write the new rows of one batch row behind `start`, as the runtime does."""
    for name, value in cache.items():
        new = outputs[name.replace("past_", "new_")][row]
        value[row, :, start : start + new.shape[1]] = new


def _tree(rng: np.random.Generator, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """A random tree under a root: parents [nodes + 1] (the root is its own), visibility [nodes + 1, nodes + 1]."""
    parents = np.array([0] + [int(rng.integers(0, n)) for n in range(1, nodes + 1)])
    visible = np.eye(nodes + 1, dtype=bool)
    for node in range(1, nodes + 1):
        visible[node] |= visible[parents[node]]
    return parents, visible


@torch.no_grad()
def _reference(model: nn.Module, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """transformers' logits and final features for one sequence: [tokens, vocab], [tokens, hidden]."""
    kept: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(  # type: ignore[operator]
        lambda _, inputs: kept.append(inputs[0])
    )
    try:
        logits = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits
    finally:
        hook.remove()
    return logits[0].float().numpy(), kept[0][0].float().numpy()


def check_target(path: Path, target: Target, prompt: np.ndarray, precision: str) -> Iterator[Check]:
    """Compare `target.onnx` with transformers.

    Args:
        prompt: the token ids of a real prompt, [tokens], 16 of them at least
    """
    graph, model = _Graph(path), target.model()
    rng = np.random.default_rng(0)
    vocab, capacity, tolerance = int(target.config.vocab_size), 256, TOLERANCE[precision]
    random = rng.integers(0, vocab, 96)
    difference = _typical if precision in QUANTIZED else _difference

    def call(tokens: np.ndarray, start: int, mask: np.ndarray, positions: np.ndarray, cache: Arrays) -> Arrays:
        rows = np.arange(len(tokens))[None]
        return graph(
            input_ids=tokens[None],
            position_ids=positions[None],
            tree_mask=mask,
            past_length=np.array([start]),
            logit_rows=rows,
            **cache,
        )

    def prompt_check(name: str, tokens: np.ndarray) -> Iterator[Check]:
        logits, features = _reference(model, tokens)
        out = call(tokens, 0, _causal(len(tokens)), np.arange(len(tokens)), graph.empty_cache(1, capacity))
        yield Check(f"{name}, {len(tokens)} rows, no past: logits", difference(out["logits"][0], logits), tolerance)
        yield Check(f"{name}: features", difference(out["hidden_states"][0], features), tolerance)
        agree = out["next_tokens"][0] == out["logits"][0].argmax(-1)
        yield Check(f"{name}: next_tokens is not the best logit", float(1 - agree.mean()), 0.0)

    yield from prompt_check("real prompt", prompt)
    yield from prompt_check("random tokens", random)

    # a long past, committed in chunks, then one row and then a tree over it
    logits, _ = _reference(model, random)
    cache, start = graph.empty_cache(1, capacity), 0
    for chunk in np.split(random[:-1], [37, 70]):
        out = call(chunk, start, _causal(len(chunk)), np.arange(start, start + len(chunk)), cache)
        _append(cache, out, start)
        start += len(chunk)
    out = call(random[-1:], start, _causal(1), np.array([start]), cache)
    yield Check(f"one row, past of {start}: logits", difference(out["logits"][0, 0], logits[-1]), tolerance)

    parents, visible = _tree(rng, 11)
    tokens = np.concatenate([random[-1:], rng.integers(0, vocab, len(parents) - 1)])
    depths = visible.sum(-1) - 1
    out = call(tokens, start, visible[None], start + depths, cache)
    worst = 0.0
    for leaf in np.setdiff1d(np.arange(1, len(parents)), parents[1:]):
        path_rows = np.flatnonzero(visible[leaf])
        expected, _ = _reference(model, np.concatenate([random[:-1], tokens[path_rows]]))
        worst = max(worst, difference(out["logits"][0, path_rows], expected[start:]))
    yield Check(f"random tree of {len(parents)} rows, past of {start}: logits", worst, tolerance)

    yield _batch_check(graph, cache, random, prompt, model, precision)


def _batch_check(graph: _Graph, cache: Arrays, long: np.ndarray, short: np.ndarray, model: nn.Module, precision: str) -> Check:
    """Two sequences with pasts of different lengths in one call; `cache` holds the first one's."""
    difference = _typical if precision in QUANTIZED else _difference
    both = {name: np.concatenate([value, np.zeros_like(value)]) for name, value in cache.items()}
    split = len(short) - 3
    single = {name: value[1:] for name, value in both.items()}
    rows = np.arange(split)[None]
    first = graph(
        input_ids=short[None, :split],
        position_ids=rows,
        tree_mask=_causal(split),
        past_length=np.zeros(1, np.int64),
        logit_rows=rows,
        **single,
    )
    _append(single, first, 0)
    starts = np.array([len(long) - 3, split])
    out = graph(
        input_ids=np.stack([long[-3:], short[-3:]]),
        position_ids=starts[:, None] + np.arange(3),
        tree_mask=_causal(3).repeat(2, 0),
        past_length=starts,
        logit_rows=np.array([[0, 1, 2], [0, 1, 2]]),
        **both,
    )
    worst = max(
        difference(out["logits"][0], _reference(model, long)[0][-3:]),
        difference(out["logits"][1], _reference(model, short)[0][-3:]),
    )
    return Check(f"batch of 2, pasts of {starts[0]} and {starts[1]}: logits", worst, TOLERANCE[precision])


def check_text(folder: Path, head: HeadCheckpoint, target: Target, options: GraphOptions, text: np.ndarray) -> Iterator[Check]:
    """What the precision costs on a text [tokens], and the drafting phase on it; transformers reads the text once."""
    text = text[: min(512, int(target.config.max_position_embeddings) - 1)]
    logits, features = _reference(target.model(), text)
    yield from _check_quality(folder / "target.onnx", logits, text, options.precision)
    yield from _check_draft(folder / "draft.onnx", head, target, options, text, features)


def _check_quality(path: Path, reference: np.ndarray, text: np.ndarray, precision: str) -> Iterator[Check]:
    """Other best tokens than the reference logits' [tokens, vocab], and perplexity."""
    graph = _Graph(path)
    cache, rows = graph.empty_cache(1, 512), np.arange(len(text))[None]
    out = graph(
        input_ids=text[None],
        position_ids=rows,
        tree_mask=_causal(len(text)),
        past_length=np.zeros(1, np.int64),
        logit_rows=rows,
        **cache,
    )
    ours, theirs = out["logits"][0].astype(np.float64), reference.astype(np.float64)
    differ = float((ours.argmax(-1) != theirs.argmax(-1)).mean())
    rise = float(np.exp(_surprise(ours, text) - _surprise(theirs, text)) - 1)
    yield Check("sample text: share of best tokens that differ", differ, DISAGREEMENT[precision])
    yield Check("sample text: perplexity above torch's", rise, PERPLEXITY[precision])


def _surprise(logits: np.ndarray, text: np.ndarray) -> float:
    """The mean negative log-probability of each token given those before it."""
    scores = logits[:-1] - logits[:-1].max(-1, keepdims=True)
    chosen = np.take_along_axis(scores, text[1:, None], -1)[:, 0]
    return float((np.log(np.exp(scores).sum(-1)) - chosen).mean())


def load_draft(head: HeadCheckpoint, target: Target, options: GraphOptions) -> nn.Module:
    """The drafting phase in eager torch, float32, with the weights that the graph was given."""
    module = draft_module(head, options)
    state = {
        name: torch.from_numpy(LazyWeight(weight, name).numpy().copy())
        for name, weight in draft_weights(head, target, options).items()
    }
    module.load_state_dict({**module.state_dict(), **state})
    return module.float().eval()


def _draft_inputs(text: np.ndarray, features: np.ndarray, places: np.ndarray, past: int, last: int) -> Arrays:
    """A call of the drafting phase behind `past` rows: the features at `places` [batch, rows] and the token behind each."""
    batch, rows = places.shape
    return {
        "input_ids": text[places + 1],
        "hidden_states": features[places],
        "position_ids": np.tile(np.arange(past, past + rows), (batch, 1)),
        "last_row": np.full(batch, last),
        "past_length": np.full(batch, past),
    }


@torch.no_grad()
def _check_draft(
    path: Path,
    head: HeadCheckpoint,
    target: Target,
    options: GraphOptions,
    text: np.ndarray,
    features: np.ndarray,
) -> Iterator[Check]:
    """Compare `draft.onnx` with eager torch: the same tree, the same scores, the same keys.

    What it is fed is what it meets in use: a text, and a past that the graph itself wrote. A trained head is chaotic elsewhere;
    after one random token, whose features are a sink's, int8 moved scores by more than 1.

    Args:
        text: token ids, [tokens]
        features: the target's of them, [tokens, hidden]
    """
    graph, module = _Graph(path), load_draft(head, target, options)
    tolerance = TOLERANCE[options.draft_precision]
    for name, batch, rows, past in (
        ("a prompt, no past", 1, 40, 0),
        ("one row, past of 90", 1, 1, 90),
        ("padded rows, past of 200", 1, 7, 200),
        ("batch of 2", 2, 5, 60),
    ):
        places = np.resize(np.arange(len(text) - 1), (batch, past + rows))
        cache = graph.empty_cache(batch, 256)
        if past:
            written = graph(**_draft_inputs(text, features, places[:, :past], 0, past - 1), **cache)
            for row in range(batch):
                _append(cache, written, 0, row)
        last = max(0, rows - 3) if "padded" in name else rows - 1
        inputs = _draft_inputs(text, features, places[:, past:], past, last)
        out = graph(**inputs, **cache)
        tensors = [torch.from_numpy(np.array(value)) for value in (*inputs.values(), *cache.values())]
        expected = module(*[t.float() if t.is_floating_point() else t for t in tensors])
        scores = np.sort(expected[2].numpy(), -1)
        int8 = options.draft_precision == "int8"  # rounding moves scores, and nodes of like score change places
        allowed = 1.0 if int8 else 5 * tolerance
        yield Check(f"draft, {name}: tree scores", float(np.abs(np.sort(out["tree_scores"], -1) - scores).max()), allowed)
        yield Check(f"draft, {name}: keys", _difference(out["new_key"], expected[3].numpy()), tolerance)
        if not int8:
            same = (out["tree_tokens"] == expected[0].numpy()) & (out["tree_parents"] == expected[1].numpy())
            # two candidates of nearly the same score may change places; exact trees are the tests' business
            yield Check(f"draft, {name}: share of nodes that differ", float(1 - same.mean()), 0.5)
