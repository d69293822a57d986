"""Random conversations."""

from __future__ import annotations

import numpy as np


def random_conversations(count: int, seed: int = 0, vocab: int = 320) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocab, int(rng.integers(8, 30))).astype(np.int32) for _ in range(count)]
