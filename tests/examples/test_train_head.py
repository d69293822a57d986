"""The recipe, on a tiny target: it trains, resumes to the same head, and what it writes can be exported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tiny
from answers import run
from jakiro_runtime import Engine

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_head" / "train_head.py"


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
    history = json.loads((trained / "training.json").read_text())["held_out"]
    # losses of different moments are not comparable: chains grow longer on the way
    assert history[-1]["accuracy"][0] > 3 / 320  # better than chance
    out = tiny.make_engine(tmp_path / "engine", tiny_target, trained, draft_vocab=128)
    engine = Engine.open(out)
    plain = run(engine.session(speculate=False), [5, 6, 7])
    assert run(engine.session(), [5, 6, 7]).tokens == plain.tokens


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


def test_bad_data_gets_a_sentence(tiny_target: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": [1, 2], "response": [3]}\n{"prompt": [1]}\n')
    process = train(tiny_target, tmp_path / "head", "--data", str(tmp_path / "bad.jsonl"))
    assert process.returncode == 1
    assert "line 2: expected" in process.stderr.read()
