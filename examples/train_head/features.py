"""The target's features of a text, computed once and kept on disk: what a head sees, and what it learns to predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn


@dataclass
class Features:
    """Every conversation of a training set, one behind the other.

    tokens: int32 [total]; features: float16 [total, hidden], after the target's final norm; starts: [conversations + 1]
    """

    tokens: np.ndarray
    features: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def frequencies(self, vocab: int) -> np.ndarray:
        """How often each token occurs."""
        return np.bincount(self.tokens, minlength=vocab)


def extract(
    model: nn.Module,
    conversations: list[list[int]],
    folder: Path,
    progress: Callable[[int], None],
    tokens_per_call: int = 4096,
) -> Features:
    """Run the target over every conversation. What an interrupted run left in `folder` is kept and continued."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden = model.config.hidden_size  # type: ignore[union-attr]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in conversations])]).astype(np.int64)
    total = int(starts[-1])
    tokens = np.concatenate([np.array(c, np.int32) for c in conversations])
    state, file = folder / "features.json", folder / "features.f16"
    wanted = {"total": total, "hidden": hidden, "sum": int(tokens.astype(np.int64).sum())}
    done = 0
    if state.is_file() and file.is_file() and file.stat().st_size == total * hidden * 2:
        found = json.loads(state.read_text())
        done = found.pop("done") if {k: found[k] for k in wanted} == wanted else 0
    features = np.memmap(file, np.float16, "r+" if done else "w+", shape=(total, hidden))
    order = np.argsort([len(c) for c in conversations], kind="stable")
    counted = 0
    while counted < len(order):
        longest, size = 0, 0
        while counted + size < len(order):
            longest = max(longest, len(conversations[order[counted + size]]))
            if size and longest * (size + 1) > tokens_per_call:
                break
            size += 1
        group = order[counted : counted + size]
        counted += size
        if counted > done:
            _run(model, [conversations[n] for n in group], [features[starts[n] : starts[n + 1]] for n in group])
            features.flush()
            state.with_suffix(".new").write_text(json.dumps({**wanted, "done": counted}))
            state.with_suffix(".new").replace(state)
        progress(int(sum(len(conversations[n]) for n in order[:counted])))
    return Features(tokens, np.array(features), starts)


@torch.inference_mode()
def _run(model: nn.Module, conversations: list[list[int]], out: list[np.ndarray]) -> None:
    """One call. Rows are padded on the right, where causal attention does not look."""
    longest = max(map(len, conversations))
    batch = torch.tensor([c + [0] * (longest - len(c)) for c in conversations])
    base = model.get_decoder()  # type: ignore[operator]
    features = base(input_ids=batch, use_cache=False).last_hidden_state.to(torch.float16).cpu().numpy()
    for row, conversation, place in zip(features, conversations, out, strict=True):
        place[:] = row[: len(conversation)]
