"""Costs of target passes."""

from __future__ import annotations

import pytest

from jakiro_runtime import Engine
from jakiro_runtime.profiling import cost


def test_cost_by_rows_leaves_out_contexts_that_do_not_fit(engine: Engine) -> None:
    table = cost.cost_by_rows(engine, repeats=2, rows=(1, 4), pasts=(64, 512, 1023))
    assert [(entry["past"], entry["capacity"]) for entry in table] == [(64, 256), (512, 1024)]
    assert table[1]["bytes_read"] == 4 * table[0]["bytes_read"]
    model = engine.manifest.model
    assert table[0]["bytes_read"] == model.num_layers * model.num_kv_heads * model.head_dim * 256 * (4 + 8)
    assert all(entry["ms"][count]["min"] > 0 for entry in table for count in ("1", "4"))
    far = cost.long_context(table, rows=3, gigabytes_per_second=2.0)
    assert far is not None
    assert far["rows"] == 4
    assert far["ratio"] == pytest.approx(far["ms"][1] / far["ms"][0], rel=1e-2)
    assert far["extra_ms_for_the_bytes"] == pytest.approx(far["extra_bytes"] / 2e6, abs=1e-3)
    assert cost.long_context(table[:1], 3, 2.0) is None
