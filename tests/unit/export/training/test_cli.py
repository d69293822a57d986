"""The recipe, on a tiny target: it trains, resumes to the same head, and what it writes can be exported."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock
from safetensors.numpy import load_file

import tiny
from answers import run
from jakiro_export.checkpoints.target import load_target
from jakiro_export.heads.registry import load_head
from jakiro_export.training.cli import main
from jakiro_runtime import Engine
from paths import ROOT

SCRIPT = ROOT / "examples" / "train_head" / "train_head.py"


def train(target: Path, out: Path, *more: str, wait: bool = True) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "-t", str(target), "-o", str(out), "--steps", "40", "--every", "10",
         "--draft-vocab", "128", "--chain", "3", "--tokens", "6000", *more],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if wait:
        process.wait()
    return process


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_target: Path) -> Path:
    out = tmp_path_factory.mktemp("trained") / "head"
    process = train(tiny_target, out)
    assert process.returncode == 0, process.stderr.read()
    return out


@pytest.mark.slow
def test_it_learns_and_can_be_exported(trained: Path, tiny_target: Path, tmp_path: Path) -> None:
    assert {file.name for file in trained.iterdir()} == {
        "config.json", "model.safetensors", "token_order.safetensors", "training.json", "training.png",
    }  # fmt: skip
    figures = json.loads((trained / "training.json").read_text())
    history, known = figures["held_out"], figures["trained_on"]["accuracy"]
    assert len(known) == len(history[-1]["accuracy"])
    assert known != history[-1]["accuracy"]  # other conversations
    # losses of different moments are not comparable: chains grow longer on the way
    assert history[-1]["accuracy"][0] > 3 / 320  # better than chance
    out = tiny.make_engine(tmp_path / "engine", tiny_target, trained, draft_vocab=128)
    engine = Engine.open(out)
    plain = run(engine.session(speculate=False), [5, 6, 7])
    assert run(engine.session(), [5, 6, 7]).tokens == plain.tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "more"),
    [("eagle", ()), ("eagle3", ("--feature-layers", "0,1,2")), ("jakiro3", ("--feature-layers", "1,3"))],
)
def test_heads_of_other_families_are_trained_and_exported(
    tiny_target: Path, tmp_path: Path, family: str, more: tuple[str, ...]
) -> None:
    """Written in the family's format, gone on with by --init, and an engine that changes no token."""
    random = np.random.default_rng(0)
    lines = [{"prompt": random.integers(3, 320, 6).tolist(), "response": random.integers(3, 320, 40).tolist()} for _ in range(60)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = ["-t", str(tiny_target), "--data", str(tmp_path / "talks.jsonl"), "--draft-vocab", "128", "--steps", "6", *more]
    named = ["--features", "fused"] if family == "jakiro3" else ["--family", family]
    assert CliRunner().invoke(main, [*said, *named, "-o", str(tmp_path / "one")]).exit_code == 0
    again = [*said, *named, "-o", str(tmp_path / "two"), "--init", str(tmp_path / "one"), "--learning-rate", "0"]
    assert CliRunner().invoke(main, again).exit_code == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert load_head(tmp_path / "one", "head").variant == family
    engine = Engine.open(tiny.make_engine(tmp_path / "engine", tiny_target, tmp_path / "one", draft_vocab=128))
    assert engine.manifest.draft.draft_vocab == 128
    assert run(engine.session(), [5, 6, 7]).tokens == run(engine.session(speculate=False), [5, 6, 7]).tokens


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--family", "eagle3", "--features", "last"), "reads fused features; leave --features last out"),
        (("--family", "eagle", "--feature-layers", "0,1"), "reads the features after the final norm"),
        (("--features", "fused", "--feature-layers", "0,9"), "has 3 layers, and 0,9 are no ascending numbers of 0 to 3"),
        (("--features", "fused", "--feature-layers", "a"), "is no list of numbers such as 2,15,27"),
    ],
)
def test_what_a_family_cannot_read_gets_a_sentence(
    tiny_target: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    result = CliRunner().invoke(main, ["-t", str(tiny_target), "-o", str(tmp_path / "head"), *options])
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


@pytest.mark.slow
def test_an_interrupted_training_ends_at_the_same_head(trained: Path, tiny_target: Path, tmp_path: Path) -> None:
    out = tmp_path / "head"
    process = train(tiny_target, out, wait=False)
    deadline = time.monotonic() + 120
    while not (tmp_path / "head.work" / "state.pt").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    again = train(tiny_target, out)
    said = again.stderr.read()
    assert again.returncode == 0, said
    assert "continuing at step" in said
    one, two = load_file(trained / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_it_asks_what_people_ask_before_it_asks_itself(tiny_target: Path, tmp_path: Path) -> None:
    asked = [f"What is {n} and {n}?" for n in range(20)]
    lines = [{"prompt": text} for text in asked] + [{"turns": ["far too long " * 200, "second"]}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    process = train(tiny_target, tmp_path / "head", "--prompts", str(tmp_path / "prompts.jsonl"), "--steps", "2")
    said = process.stderr.read()
    assert process.returncode == 0, said
    assert "1 of 21 prompts have more than 256 tokens" in said
    tokenizer = load_target(tiny_target, "tiny").tokenizer()
    found = {}
    for line in (tmp_path / "head.work" / "conversations.jsonl").read_text().splitlines():
        record = json.loads(line)
        found[record["number"]] = tokenizer.decode(record["prompt"])
    assert len(found) > 25
    for text in asked:
        assert sum(text in prompt for number, prompt in found.items() if number < 20) == 1
    assert not any("far too long" in prompt for prompt in found.values())


@pytest.mark.slow
def test_bad_data_gets_a_sentence(tiny_target: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": [1, 2], "response": [3]}\n{"prompt": [1]}\n')
    process = train(tiny_target, tmp_path / "head", "--data", str(tmp_path / "bad.jsonl"))
    assert process.returncode == 1
    assert "line 2: expected" in process.stderr.read()


@pytest.mark.slow
def test_a_truncated_archive_gets_a_sentence(tiny_target: Path, tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"prompt": [1, %d], "response": [3]}\n' % (n % 300) for n in range(5000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    process = train(tiny_target, tmp_path / "head", "--data", str(tmp_path / "cut.jsonl.gz"))
    assert process.returncode == 1
    assert "cut.jsonl.gz cannot be read to its end" in process.stderr.read()


@pytest.mark.slow
def test_a_second_process_does_not_touch_the_work_of_the_first(tiny_target: Path, tmp_path: Path) -> None:
    work = tmp_path / "head.work"
    work.mkdir()
    with FileLock(work / "lock"):
        process = train(tiny_target, tmp_path / "head")
    assert process.returncode == 2
    assert "Another process is at work in" in process.stderr.read()
    assert [file.name for file in work.iterdir()] == ["lock"]


@pytest.mark.slow
def test_it_begins_with_a_published_head(tiny_target: Path, tiny_head: Path, tmp_path: Path) -> None:
    """At a learning rate of zero what comes out is what went in, once rounded to fp16."""
    process = train(tiny_target, tmp_path / "head", "--init", str(tiny_head), "--learning-rate", "0", "--steps", "2")
    said = process.stderr.read()
    assert process.returncode == 0, said
    given, out = load_file(tiny_head / "model.safetensors"), load_file(tmp_path / "head" / "model.safetensors")
    assert set(given) == set(out)
    assert all(np.array_equal(given[name].astype(np.float16), out[name]) for name in given)
