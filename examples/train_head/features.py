"""The target's features of a text, computed once and kept on disk: what a head sees, and what it learns to predict."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

_HELD_OUT = 48  # one conversation in so many is held out, until there are enough


class Text:
    """Conversations and the target's features of them, which stay on disk.

    tokens: int32 [length] of each conversation
    features: float16 [length, hidden] of each, after the target's final norm
    lengths: of all conversations
    """

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.features: list[np.ndarray] = []

    def add(self, conversations: Sequence[Sequence[int]], features: np.ndarray) -> None:
        """Conversations, and their features one behind the other."""
        start = 0
        for conversation in conversations:
            self.tokens.append(np.array(conversation, np.int32))
            self.features.append(features[start : start + len(conversation)])
            start += len(conversation)

    def keep(self, tokens: int, held_out: int) -> None:
        """Keep what is held out, and of the rest so many tokens, from the first on."""
        held = set(self.held_out(held_out).tolist())
        lengths = np.where([n in held for n in range(len(self.tokens))], 0, self.lengths)
        kept = np.flatnonzero(np.cumsum(lengths) <= tokens)
        self.tokens, self.features = [self.tokens[n] for n in kept], [self.features[n] for n in kept]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in self.tokens])

    def frequencies(self, vocab: int) -> np.ndarray:
        """How often each token occurs."""
        return np.bincount(np.concatenate(self.tokens), minlength=vocab)

    def held_out(self, most: int) -> np.ndarray:
        """The numbers of conversations to measure on. Text that is added later does not change them once there are `most`."""
        most = min(most, max(1, len(self.tokens) // 5))
        drawn = [n for n, tokens in enumerate(self.tokens) if zlib.crc32(tokens.tobytes()) % _HELD_OUT == 0]
        return np.array((drawn + [n for n in range(len(self.tokens)) if n not in set(drawn)])[:most])


def extract(
    model: nn.Module,
    conversations: Sequence[Sequence[int]],
    folder: Path,
    progress: Callable[[int], None],
    tokens_per_call: int = 4096,
) -> np.ndarray:
    """Run the target over every conversation. What an interrupted run left in `folder` is kept and continued.

    Returns:
        float16 [all tokens, hidden], on disk
    """
    folder.mkdir(parents=True, exist_ok=True)
    hidden = model.config.hidden_size  # type: ignore[union-attr]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in conversations])]).astype(np.int64)
    total = int(starts[-1])
    state, file = folder / "features.json", folder / "features.f16"
    wanted = {"total": total, "hidden": hidden, "sum": sum(map(sum, conversations))}
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
    return features


@torch.inference_mode()
def _run(model: nn.Module, conversations: Sequence[Sequence[int]], out: Sequence[np.ndarray]) -> None:
    """One call. Rows are padded on the right, where causal attention does not look."""
    longest = max(map(len, conversations))
    batch = torch.tensor([[*c, *[0] * (longest - len(c))] for c in conversations])
    base = model.get_decoder()  # type: ignore[operator]
    features = base(input_ids=batch, use_cache=False).last_hidden_state.to(torch.float16).cpu().numpy()
    for row, conversation, place in zip(features, conversations, out, strict=True):
        place[:] = row[: len(conversation)]
