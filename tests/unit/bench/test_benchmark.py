"""A whole run: what its report says, and that an output that differs is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benching import ID, bench
from jakiro_bench.recording import RecordingGraph
from jakiro_bench.report import HEAD_ALONE, PLAIN, SPECULATIVE
from jakiro_runtime import GenerationChunk, Session
from jakiro_runtime.format.manifest import Manifest
from plans import make_plan


def head_alone(session: Session) -> bool:
    """Whether it decodes with the head alone."""
    return isinstance(session.bundle.draft, RecordingGraph)


def test_the_report_says_what_was_measured(tiny_engine: Path, prompts_file: Path) -> None:
    result = bench(tiny_engine, prompts_file, "--json", "-")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)  # tables go to standard error
    assert list(data) == [
        "speedup",
        "tau",
        "tokens_per_second",
        "plain_tokens_per_second",
        "identical",
        "head_alone",
        "detail",
        "machine",
        "settings",
    ]
    assert data["identical"] is True
    alone = data["head_alone"]
    assert set(alone) == {"tau", "tokens_per_second", "speedup"}
    assert alone["speedup"] == pytest.approx(alone["tokens_per_second"] / data["plain_tokens_per_second"], rel=1e-3)
    assert data["detail"]["head_alone"]["nodes_per_round"] == 12
    assert data["settings"]["lookup"] is True
    assert "head alone" in result.stderr
    assert data["speedup"] == pytest.approx(data["tokens_per_second"] / data["plain_tokens_per_second"], rel=1e-3)
    detail = data["detail"]
    # a round gives the nodes that it accepted and one token more, but for the rounds that an answer ends in
    missing = 1 + sum(detail["acceptance"]["by_depth"]) - data["tau"]
    assert -1e-3 <= missing <= 2 * detail["answers"] / detail["acceptance"]["rounds"] + 1e-3
    assert detail["answers"] == 3
    assert detail["tau_interval"] is None  # two prompts say nothing of others
    assert detail["tokens_per_second"]["repeats"] == 2
    assert [(each["id"], each["turns"]) for each in detail["prompts"]] == [(ID, 2), ("line-2", 1)]
    parts = detail["round_ms"]
    assert parts["total_ms"]["max"] >= parts["target_ms"]["min"] > 0
    assert detail["plain_step_ms"]["draft_ms"]["max"] == 0
    assert detail["peak_memory_mb"] > 20
    assert data["machine"]["threads"] == 1
    assert data["machine"]["versions"]["onnxruntime"]
    assert data["settings"]["max_new_tokens"] == 10
    assert "output identical: yes" in result.stderr


def break_speculation(monkeypatch: pytest.MonkeyPatch, broken: Callable[[Session], bool]) -> None:
    """These sessions change the third token of every answer."""
    honest = Session.generate

    def generate(self: Session, *args: Any, **options: Any) -> Iterator[GenerationChunk]:
        seen = 0
        for chunk in honest(self, *args, **options):
            if broken(self) and seen <= 2 < seen + len(chunk.tokens):
                chunk.tokens[2 - seen] ^= 1
            seen += len(chunk.tokens)
            yield chunk

    monkeypatch.setattr(Session, "generate", generate)


def speculates(session: Session) -> bool:
    return session._decoder.proposer.draft is not None


@pytest.mark.parametrize(
    ("broken", "who"),
    [
        (speculates, {SPECULATIVE, HEAD_ALONE}),
        (head_alone, {HEAD_ALONE}),
        (lambda session: speculates(session) and not head_alone(session), {SPECULATIVE}),
    ],
    ids=["both", "the head alone", "with looking up"],
)
def test_a_broken_session_is_noticed(
    tiny_engine: Path,
    prompts_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[Session], bool],
    who: set[str],
) -> None:
    break_speculation(monkeypatch, broken)
    result = bench(tiny_engine, prompts_file, "--json", tmp_path / "bench.json", "--html", tmp_path / "bench.html")
    assert result.exit_code == 1
    data = json.loads((tmp_path / "bench.json").read_text())
    assert data["identical"] is False
    assert len(data["detail"]["differences"]) == 6 * len(who)  # three answers, two repeats
    assert {each["contender"] for each in data["detail"]["differences"]} == who
    assert {each["position"] for each in data["detail"]["differences"]} == {2}
    assert "output identical: NO" in result.stdout
    assert result.stderr.startswith(f"Error: {6 * len(who)} answers differ")
    assert ">NO<" in (tmp_path / "bench.html").read_text()


def test_without_looking_up_nothing_runs_twice(tiny_engine: Path, prompts_file: Path, tmp_path: Path) -> None:
    result = bench(tiny_engine, prompts_file, "--json", "-", "--no-lookup", "--html", tmp_path / "bench.html")
    data = json.loads(result.stdout)
    assert data["head_alone"] == {name: data[name] for name in ("tau", "tokens_per_second", "speedup")}
    assert data["detail"]["head_alone"] is None
    assert data["detail"]["looked_up_per_round"] == 0
    assert data["detail"]["peak_memory_of"] == [SPECULATIVE, PLAIN]
    assert "head alone:" not in result.stderr.replace("head alone: child", "")
    assert data["detail"]["acceptance"]["by_rank"]["rounds"] > 0


def test_a_conversation_that_outgrows_the_context_is_cut_and_said(tiny_engine: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"id": "long", "turns": ["short", "x" * 990, "never asked"]}))
    result = bench(tiny_engine, file, "--json", "-")
    detail = json.loads(result.stdout)["detail"]
    assert detail["left_out"] == [{"id": "long", "turn": 2}]
    assert detail["answers"] == 1


def test_limit_and_benchmark_choose_prompts(tiny_engine: Path, prompts_file: Path) -> None:
    chosen = bench(tiny_engine, prompts_file, "--benchmark", "ours", "--limit", 1, "--raw", "--json", "-", "--nodes", 3)
    data = json.loads(chosen.stdout)
    assert [each["id"] for each in data["detail"]["prompts"]] == [ID]
    assert data["settings"]["chat"] is False
    assert len(data["detail"]["acceptance"]["by_rank"]["by_tree_rank"]) == 3


def test_the_choice_of_the_tree_is_compared_with_what_was_measured(tiny_engine: Path, prompts_file: Path, tmp_path: Path) -> None:
    planned = tmp_path / "planned"
    shutil.copytree(tiny_engine, planned)
    replace(Manifest.read(planned), tree=make_plan()).write(planned)
    result = bench(planned, prompts_file, "--json", "-", "--profile")
    data = json.loads(result.stdout)
    choice, detail = data["detail"]["tree_choice"], data["detail"]
    assert choice["expected"]["tau"] == 2.0
    assert choice["reached"]["speedup"] == data["head_alone"]["speedup"]
    assert choice["reached"]["nodes_per_round"] == detail["head_alone"]["nodes_per_round"] < 12
    assert "was chosen by measurement: tau 2.00" in " ".join(result.stderr.split())
    functions = [entry["function"] for entry in detail["host_profile"]["functions"]]
    assert any(name.startswith("decoding/") for name in functions)  # which of them are slowest differs
    assert 5 < detail["host_profile"]["alone_us"] < 3000
    assert not any("run_with_iobinding" in name for name in functions)  # the graphs are not host work
    assert "tree_choice" not in json.loads(bench(planned, prompts_file, "--json", "-", "--nodes", 3).stdout)["detail"]
