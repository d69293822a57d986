"""Does what was written compute what torch computes? Both graphs in ONNX Runtime, against transformers and eager torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jakiro_export.plan import ExportPlan
from jakiro_export.verification.check import Check
from jakiro_export.verification.draft import check_draft
from jakiro_export.verification.reference import reference
from jakiro_export.verification.target import check_target
from jakiro_export.verification.text import check_text
from jakiro_runtime.backends.evaluate import GraphCall
from jakiro_runtime.backends.onnxruntime import open_graph

_PROMPT = "Explain in two sentences why the sky is blue, then write a haiku about it."
_SAMPLE = Path(__file__).with_name("sample.txt")
_PROMPT_TOKENS, _SAMPLE_TOKENS = 16, 512  # at least, at most


def compare(folder: Path, plan: ExportPlan) -> list[Check]:
    """Compare the graphs in `folder` with torch. transformers reads the sample text once, for target and head."""
    target, manifest = plan.target.checkpoint, plan.manifest()
    tokenizer = target.tokenizer()
    ids = tokenizer(_PROMPT)["input_ids"]
    prompt = np.array((ids * _PROMPT_TOKENS)[: max(_PROMPT_TOKENS, len(ids))], np.int64)
    text = np.array(tokenizer(_SAMPLE.read_text(encoding="utf-8"))["input_ids"], np.int64)
    text = text[: min(_SAMPLE_TOKENS, int(target.config.max_position_embeddings) - 1)]
    target_graph = GraphCall(open_graph(folder / manifest.graphs["target"]), manifest.target_contract)
    draft_graph = GraphCall(open_graph(folder / manifest.graphs["draft"]), manifest.draft_contract)
    checks = list(check_target(target_graph, plan.target, prompt))
    logits, features = reference(target.model(), text, plan.target.feature_layers)
    return [
        *checks,
        *check_text(target_graph, plan.target.precision, text, logits),
        *check_draft(draft_graph, plan.draft, text, features),
    ]
