"""The real model: speculative = plain = transformers, sampled too, and the shipped head is worth having."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from answers import run
from jakiro_export.checkpoint.locate import locate
from jakiro_export.checkpoint.target import load_target
from jakiro_runtime import Engine, Result, Sampling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(smollm2: Engine, chats: list[list[int]]) -> list[Result]:
    return [run(smollm2.session(speculate=False), prompt, 64) for prompt in chats]


def test_the_export_says_what_it_found_and_checked(exported: tuple[Path, str]) -> None:
    out, said = exported
    assert "LlamaForCausalLM" in said
    assert "FAILED" not in said
    manifest = json.loads((out / "engine.json").read_text())
    assert manifest["equality"] == "bitwise"
    assert len(manifest["checks"]) >= 6
    assert all(check["passed"] and check["value"] <= check["tolerance"] for check in manifest["checks"])


def test_speculation_changes_nothing_and_pays(smollm2: Engine, chats: list[list[int]], plain: list[Result]) -> None:
    rounds = tokens = 0
    for prompt, expected in zip(chats, plain, strict=True):
        found = run(smollm2.session(chunk=37), prompt, 64)
        assert (found.tokens, found.text, found.finish_reason) == (expected.tokens, expected.text, expected.finish_reason)
        rounds += found.stats.rounds
        tokens += sum(found.stats.accepted) + found.stats.rounds
    assert tokens / rounds > 1.9, "the shipped head is not what it was"


def test_transformers_says_the_same(smollm2: Engine, chats: list[list[int]], plain: list[Result]) -> None:
    model = load_target(locate("smollm2-135m", "target"), "smollm2-135m").model()
    for prompt, ours in zip(chats, plain, strict=True):
        theirs = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]), do_sample=False, max_new_tokens=len(ours.tokens), eos_token_id=sorted(smollm2.eos_token_ids)
        )[0, len(prompt) :].tolist()
        if ours.tokens != theirs:
            place = next(n for n, (a, b) in enumerate(zip(ours.tokens, theirs, strict=False)) if a != b)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + theirs[:place]])).logits[0, -1]
            gap = abs(float(logits[ours.tokens[place]] - logits[theirs[place]]))
            assert gap < 1e-3, f"token {place}: logits {gap} apart is no tie"


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7, top_p=0.95, seed=8), Sampling(temperature=1.0, logprobs=2)])
def test_sampled_too(smollm2: Engine, chats: list[list[int]], sampling: Sampling) -> None:
    for prompt in chats[:3]:
        expected = run(smollm2.session(speculate=False), prompt, 40, sampling=sampling)
        for nodes in (None, 9):
            found = run(smollm2.session(nodes=nodes), prompt, 40, sampling=sampling)
            assert (found.tokens, found.logprobs) == (expected.tokens, expected.logprobs)


def test_other_thread_counts_and_long_texts(exported: tuple[Path, str], smollm2: Engine, chats: list[list[int]]) -> None:
    one = Engine.open(exported[0], threads=1)
    long = (chats[0] + chats[1][:-3] + chats[2][:-3]) * 7  # grows the cache beyond its first buckets
    expected = run(smollm2.session(speculate=False), long, 24, sampling=Sampling(logprobs=0))
    assert run(one.session(chunk=100), long, 24, sampling=Sampling(logprobs=0)).logprobs == expected.logprobs


def test_the_host_takes_no_time_to_speak_of(smollm2: Engine, chats: list[list[int]]) -> None:
    session = smollm2.session()
    run(session, chats[1], 8)
    assert run(session, chats[0], 64).stats.as_dict()["host_share"] < 0.05
