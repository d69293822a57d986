"""Calibration texts: the target's greedy answers to prompts of this package that no benchmark uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jakiro_runtime.decoding.target_runner import TargetRunner
from jakiro_runtime.engine import Engine

_PROMPTS = Path(__file__).parent / "prompts.txt"


@dataclass(frozen=True)
class Text:
    """A prompt and its answer.

    tokens: [length]
    features: the target's after each token, [length, width]
    first: where the answer begins
    """

    tokens: np.ndarray
    features: np.ndarray
    first: int


def calibration_texts(engine: Engine, count: int, new_tokens: int) -> list[Text]:
    """Let the target answer `count` prompts with up to `new_tokens` tokens each; answers of fewer than four are left out."""
    lines = _PROMPTS.read_text(encoding="utf-8").splitlines()[:count]
    room = engine.manifest.model.max_context - new_tokens
    prompts = [_ids(engine, line)[:room] for line in lines]
    results = engine.generate(prompts, max_new_tokens=new_tokens, speculate=False)
    whole = [(prompt, [*prompt, *result.tokens]) for prompt, result in zip(prompts, results, strict=True)]
    return [Text(np.array(ids), _features(engine, ids), len(prompt)) for prompt, ids in whole if len(ids) - len(prompt) >= 4]


def _ids(engine: Engine, line: str) -> list[int]:
    return engine.encode(line) if engine.bundle.template is None else engine.chat_prompt([{"role": "user", "content": line}])


def _features(engine: Engine, ids: list[int]) -> np.ndarray:
    """The target's features after each token, [length, width], as drafting sees them."""
    call, rows = TargetRunner(engine.bundle.target, engine.manifest), len(ids)
    positions, mask = np.arange(rows)[None], np.tri(rows, dtype=bool)[None]
    output = call.run(np.array(ids)[None], positions, mask, logits=False, last=np.array([rows - 1]))
    return np.asarray(output.features[0, 0, 0, :rows]).copy()
