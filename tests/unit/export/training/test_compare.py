"""The comparison, on a tiny target: what it keeps, and that its heads are those of train_head.py."""

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

from jakiro_export.heads.registry import load_head

SETTINGS = ("--steps", "30", "--draft-vocab", "128", "--batch-tokens", "128")


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file, rng = tmp_path_factory.mktemp("talks") / "talks.jsonl", np.random.default_rng(0)
    with file.open("w") as lines:
        for _ in range(120):
            prompt, response = rng.integers(3, 320, 6).tolist(), rng.integers(3, 320, int(rng.integers(20, 50))).tolist()
            lines.write(json.dumps({"prompt": prompt, "response": response}) + "\n")
    return file


def start(script: str, target: Path, talks: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        f"jakiro_export.training.{script}",
        "-t",
        str(target),
        "--data",
        str(talks),
        "-o",
        str(out),
        *SETTINGS,
        *more,
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def compare(target: Path, talks: Path, out: Path, *more: str) -> dict[str, dict[str, object]]:
    process = start("compare", target, talks, out, "--depths", "3", "--chain", "2", *more)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    return json.loads((out / "comparison.json").read_text())["variants"]


@pytest.fixture(scope="module")
def compared(tiny_target: Path, talks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    compare(tiny_target, talks, out, "--variants", "eagle2=1.5,chain=1,data=0.5")
    return out


@pytest.mark.slow
def test_one_thing_differs_in_each_row(compared: Path) -> None:
    rows = json.loads((compared / "comparison.json").read_text())["variants"]
    assert list(rows) == ["baseline", "eagle2=1.5", "chain=1", "data=0.5"]
    assert [row["measure"]["step"] for row in rows.values()] == [30, 45, 30, 30]
    assert rows["data=0.5"]["tokens"] == pytest.approx(rows["baseline"]["tokens"] / 2, rel=0.1)
    assert all(len(row["measure"]["accuracy"]) == 3 for row in rows.values())
    table = (compared / "comparison.md").read_text().splitlines()
    assert len(table) == 2 + 4
    assert (compared / "comparison.png").stat().st_size > 1000
    assert load_head(compared / "eagle2=1.5" / "head", "head").variant == "eagle"
    assert rows["eagle2=1.5"]["measure"]["contrast"] is None


@pytest.mark.slow
def test_its_heads_are_those_of_the_recipe(compared: Path, tiny_target: Path, talks: Path, tmp_path: Path) -> None:
    process = start("cli", tiny_target, talks, tmp_path / "head", "--chain", "1", "--max-tokens", "1000000")
    said = process.communicate()[1]
    assert process.returncode == 0, said
    recipe, baseline, variant = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "head", compared / "baseline" / "head", compared / "chain=1" / "head")
    )
    assert all(np.array_equal(recipe[name], variant[name]) for name in recipe)
    assert not all(np.array_equal(recipe[name], baseline[name]) for name in recipe)  # and a chain makes a difference


@pytest.mark.slow
def test_what_is_finished_stays_and_what_is_interrupted_goes_on(tiny_target: Path, talks: Path, tmp_path: Path) -> None:
    long = ("--steps", "120", "--variants", "noise=0.2")
    process = start("compare", tiny_target, talks, tmp_path, "--depths", "3", "--chain", "2", *long)
    state, deadline = tmp_path / "noise=0.2" / "state.pt", time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "noise=0.2" / "result.json").exists()
    finished = (tmp_path / "baseline" / "result.json").stat().st_mtime_ns
    broken = compare(tiny_target, talks, tmp_path, *long)
    assert (tmp_path / "baseline" / "result.json").stat().st_mtime_ns == finished
    whole = compare(tiny_target, talks, tmp_path / "whole", *long)
    one, two = (load_file(folder / "noise=0.2" / "head" / "model.safetensors") for folder in (tmp_path, tmp_path / "whole"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert broken["noise=0.2"]["measure"]["accuracy"] == whole["noise=0.2"]["measure"]["accuracy"]
    again = compare(tiny_target, talks, tmp_path, "--steps", "20", "--variants", "baseline")  # another plan: nothing of it fits
    assert again["baseline"]["measure"]["step"] == 20


@pytest.mark.slow
def test_an_unknown_variant_gets_a_sentence(tiny_target: Path, talks: Path, tmp_path: Path) -> None:
    process = start("compare", tiny_target, talks, tmp_path, "--variants", "chains")
    said = process.communicate()[1]
    assert process.returncode == 2
    assert "no variant 'chains'; there are eagle2, chain" in " ".join(said.split())
