"""An opened tiny engine, and prompts for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from jakiro_runtime import Engine


@pytest.fixture(scope="session")
def engine(tiny_engine: Path) -> Engine:
    return Engine.open(tiny_engine)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of many lengths, some longer than a chunk and some longer than the first capacity bucket."""
    random = np.random.default_rng(3)
    return [random.integers(3, tiny.VOCAB, length).tolist() for length in (1, 2, 3, 17, 40, 129, 250, 300)]
