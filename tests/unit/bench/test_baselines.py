"""Other runtimes: which take part, and what happens where they fail."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benching import bench
from jakiro_bench import baselines
from jakiro_bench.baselines import Baseline, BaselineKind
from jakiro_runtime import Engine, EngineError


def test_baselines_take_part_or_are_skipped_with_a_reason(
    tiny_engine: Path, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Steady(Baseline):
        package = "click"

        def __init__(self, name: str, path: Path, engine: Engine, threads: int) -> None:
            super().__init__(name, path, engine)
            if path.name == "bad":
                raise RuntimeError("cannot load\nthis")

        def _stream(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
            yield from range(3, 100)

    kinds = {
        "steady": BaselineKind("click", "click", "anything", Steady),
        "absent": BaselineKind("no_such_module", "no-such-package", "anything", Steady),
    }
    monkeypatch.setattr(baselines, "KINDS", kinds)
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    models = [word for name in ("good", "bad") for word in ("--peer-model", f"steady={tmp_path / name}")]
    result = bench(tiny_engine, prompts_file, "--compare", "steady,absent", *models, "--json", "-")
    data = json.loads(result.stdout)
    figures = data["detail"]["peers"]["steady good"]
    assert figures["speculative_ratio"] == pytest.approx(
        data["tokens_per_second"] / figures["tokens_per_second"]["median"], abs=1e-3
    )
    assert figures["version"]
    assert figures["new_tokens"] == 30
    assert 0 <= figures["agreement"] < 0.5  # it counts, and ours does not
    reasons = {each["name"]: each["reason"] for each in data["detail"]["peers_left_out"]}
    assert reasons["absent"] == "no-such-package is not installed; install it with: pip install no-such-package"
    assert reasons["steady bad"].endswith("cannot load")
    assert reasons["absent"] in result.stderr


def test_a_baseline_stops_at_the_limit_and_at_the_end_of_the_text(engine: Engine) -> None:
    class Stream(Baseline):
        def _stream(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
            yield from prompt

    eos = min(engine.bundle.eos_token_ids)
    baseline = Stream("x", Path(), engine)
    assert baseline.answer([5, 6, eos, 7], 8).tokens == [5, 6, eos]
    assert baseline.answer([5, 6, eos, 7], 2).tokens == [5, 6]


def test_a_baseline_that_fails_midway_is_one_sentence(engine: Engine) -> None:
    class Failing(Baseline):
        def _stream(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
            yield 3
            raise ValueError("context is full")

    with pytest.raises(EngineError, match=r"x fails on a prompt of 2 tokens \(context is full\); compare without it\.$"):
        Failing("x", Path(), engine).answer([5, 6], 8)
