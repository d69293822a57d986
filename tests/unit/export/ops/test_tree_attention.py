"""Tree attention: a row is the same, bit for bit, wherever its ancestors lie."""

from __future__ import annotations

import numpy as np
import pytest

from jakiro_export.ops.operator import Example
from jakiro_export.ops.tree_attention import OPERATORS
from operator_model import run

(OPERATOR,) = OPERATORS
BATCH, HEADS, KV_HEADS, DIM, CHAIN, PAST = 1, 6, 2, 16, 9, 20


@pytest.mark.parametrize(("cached", "capacity"), [(1, 32), (5, 64), (8, 300)])
def test_the_cache_and_the_call_are_not_told_apart(cached: int, capacity: int) -> None:
    random = np.random.default_rng(0)
    query = random.standard_normal((BATCH, HEADS, CHAIN, DIM)).astype(np.float32)
    rows = {part: random.standard_normal((BATCH, KV_HEADS, PAST + CHAIN, DIM)).astype(np.float32) for part in ("key", "value")}

    def last_row(first: int, capacity: int) -> np.ndarray:
        """The chain's last row, the rows before `first` from the cache."""
        inputs = {"query": query[:, :, first:]}
        for place in ("past", "new"):
            for part, every in rows.items():
                cache = np.zeros((BATCH, KV_HEADS, capacity, DIM), np.float32)
                cache[:, :, : PAST + first] = every[:, :, : PAST + first]
                inputs[f"{place}_{part}"] = cache if place == "past" else every[:, :, PAST + first :]
        inputs["past_length"], inputs["visible"] = np.array([PAST + first]), np.tri(CHAIN - first, dtype=bool)[None]
        example = Example({each.name: np.ascontiguousarray(inputs[each.name]) for each in OPERATOR.inputs}, {"scaling": 0.25})
        return run(OPERATOR, example)[0][:, -1]

    together = last_row(0, 32)
    assert np.array_equal(last_row(cached, capacity), together)
    query[0, 0, -1, 0] += 1e-4  # a control
    assert not np.array_equal(last_row(0, 32), together)
