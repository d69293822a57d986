"""What a precision costs on a text: other best tokens than torch's, and a higher perplexity."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jakiro_export.precisions import Precision
from jakiro_export.verification.check import Check
from jakiro_runtime.backends.evaluate import GraphCall, causal_mask

# Against torch in float32: the share of positions with another best token, and how much perplexity rises
DISAGREEMENT = {"fp32": 0.01, "fp16": 0.05, "int8": 0.1, "int4": 0.25, "w4a16": 0.5, "w8a8": 0.15, "fp8": 0.3, "nvfp4": 0.6}
PERPLEXITY = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.03, "int4": 0.15, "w4a16": 0.6, "w8a8": 0.05, "fp8": 0.2, "nvfp4": 0.8}
_CAPACITY = 512


def check_text(graph: GraphCall, precision: Precision, text: np.ndarray, logits: np.ndarray) -> Iterator[Check]:
    """Compare the target's graph with torch.

    Args:
        text: token ids, [tokens]
        logits: torch's after each of them, [tokens, vocab]
    """
    rows = np.arange(len(text))[None]
    out = graph(
        input_ids=text[None],
        position_ids=rows,
        tree_mask=causal_mask(len(text)),
        past_length=np.zeros(1, np.int64),
        logit_rows=rows,
        **graph.empty_cache(1, _CAPACITY),
    )
    ours, theirs = out["logits"][0].astype(np.float64), logits.astype(np.float64)
    differ = float((ours.argmax(-1) != theirs.argmax(-1)).mean())
    rise = float(np.exp(surprise(ours, text) - surprise(theirs, text)) - 1)
    yield Check("sample text: share of best tokens that differ", differ, DISAGREEMENT[precision.name])
    yield Check("sample text: perplexity above torch's", rise, PERPLEXITY[precision.name])


def surprise(logits: np.ndarray, text: np.ndarray) -> float:
    """The mean negative log-probability of each token given those before it."""
    scores = logits[:-1] - logits[:-1].max(-1, keepdims=True)
    chosen = np.take_along_axis(scores, text[1:, None], -1)[:, 0]
    return float((np.log(np.exp(scores).sum(-1)) - chosen).mean())
