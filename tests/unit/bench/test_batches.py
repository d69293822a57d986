"""Throughput by batch size: the answers are the engine's own, and the table says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from answers import plain
from benching import bench
from jakiro_bench.batches import _decode, by_batch
from jakiro_runtime import Engine

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


def test_a_batch_gives_every_request_its_own_answer(engine: Engine) -> None:
    found = _decode(engine, PROMPTS, 2, 12, True, None, True)
    assert found.answers == [plain(engine, prompt, 12).tokens for prompt in PROMPTS]
    assert found.nodes > 0
    assert _decode(engine, PROMPTS, 2, 12, False, None, True).nodes == 0


def test_sizes_are_measured_in_turn_and_compared(engine: Engine) -> None:
    seen: list[int] = []
    rows = by_batch(engine, PROMPTS, (1, 3), 8, 2, progress=seen.append)
    assert [row["batch"] for row in rows] == [1, 3]
    assert all(row["identical"] and row["tokens_per_second"] > 0 and row["ratio"] > 0 for row in rows)
    assert sum(seen) == 4 * 2 * (1 + 3)


def test_the_command_reports_them(tiny_engine: Path, prompts_file: Path, tmp_path: Path) -> None:
    done = bench(tiny_engine, prompts_file, "--batch", "1,2", "--json", tmp_path / "bench.json", "--repeats", "1")
    assert done.exit_code == 0, done.output
    assert "Requests decoded together" in done.stdout
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [row["batch"] for row in report["detail"]["batches"]] == [1, 2]
    assert report["settings"]["batch"] == [1, 2]
