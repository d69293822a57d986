"""The loop: speculative output is plain output is transformers' output, and it ends where it must."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from answers import plain, run
from jakiro_runtime import Engine, EngineError, Sampling, UsageError
from jakiro_runtime.decoding import decoder as decoder_module
from oracle import with_oracle

LAST_ROUND = 6  # tokens whose draft rows the next round would have made: a tree of four levels, and one more behind it


@pytest.fixture(scope="module")
def answers(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    return [plain(engine, prompt).tokens for prompt in prompts]


@pytest.fixture(scope="module")
def oracle(engine: Engine, prompts: list[list[int]], answers: list[list[int]]) -> Engine:
    return with_oracle(engine, [[*p, *a] for p, a in zip(prompts, answers, strict=True)])


def test_transformers_says_the_same(tiny_target: Path, prompts: list[list[int]], answers: list[list[int]]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)
    for prompt, ours in zip(prompts, answers, strict=True):
        theirs = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=40)[0, len(prompt) :].tolist()
        if ours != theirs:
            place = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            logits = model(torch.tensor([prompt + ours[:place]])).logits[0, -1]
            top = logits.topk(2).values
            assert top[0] - top[1] < 1e-3, f"{ours} is not {theirs}, and no tie: the best two logits are {top.tolist()}"


@pytest.mark.parametrize("chunk", [2, 37, 128])
def test_the_heads_tree_changes_nothing(engine: Engine, prompts: list[list[int]], answers: list[list[int]], chunk: int) -> None:
    for prompt, expected in zip(prompts, answers, strict=True):
        assert run(engine.session(chunk=chunk), prompt).tokens == expected


@pytest.mark.parametrize("nodes", [None, 5, 1])
def test_a_tree_that_is_often_right_changes_nothing(
    oracle: Engine, prompts: list[list[int]], answers: list[list[int]], nodes: int | None
) -> None:
    rounds = 0
    for prompt, expected in zip(prompts, answers, strict=True):
        result = run(oracle.session(nodes=nodes), prompt)
        assert result.tokens == expected
        rounds += result.stats.rounds
        stats = result.stats
        assert stats.tau == (len(result.tokens) - 1) / stats.rounds, "tokens after an answer's end count for nothing"
        assert sum(stats.accepted) <= len(result.tokens) - 1 <= sum(stats.accepted) + stats.rounds
        assert stats.accepted == sorted(stats.accepted, reverse=True)
    assert rounds < sum(map(len, answers)) - len(answers), "the oracle was never right"


@pytest.mark.parametrize("fault", ["commits rejected rows", "forgets the mask", "off by one position"])
def test_a_broken_loop_is_noticed(
    monkeypatch: pytest.MonkeyPatch, oracle: Engine, prompts: list[list[int]], answers: list[list[int]], fault: str
) -> None:
    if fault == "commits rejected rows":
        commit = decoder_module.TargetRunner.commit
        monkeypatch.setattr(
            decoder_module.TargetRunner,
            "commit",
            lambda self, output, rows: commit(self, output, [list(range(len(r))) for r in rows]),
        )
    elif fault == "forgets the mask":
        honest = decoder_module.tree_mask

        def causal(parents: list[int], rows: int) -> tuple[np.ndarray, list[int]]:
            return np.tri(rows, dtype=bool), honest(parents, rows)[1]

        monkeypatch.setattr(decoder_module, "tree_mask", causal)
    else:
        honest = decoder_module.tree_mask

        def later(parents: list[int], rows: int) -> tuple[np.ndarray, list[int]]:
            mask, depths = honest(parents, rows)
            return mask, [depth + (row > 0) for row, depth in enumerate(depths)]

        monkeypatch.setattr(decoder_module, "tree_mask", later)
    broken = [run(oracle.session(), prompt).tokens for prompt in prompts]
    assert broken != answers


def test_it_ends_at_the_first_end_of_sequence(oracle: Engine, prompts: list[list[int]], answers: list[list[int]]) -> None:
    for prompt, expected in zip(prompts, answers, strict=True):
        for eos in sorted(set(expected))[:4]:
            ending = Engine(oracle.bundle.replace(eos_token_ids=frozenset([eos])))
            first = expected.index(eos)
            for speculate in (True, False):
                session = ending.session(speculate=speculate)
                result = run(session, prompt)
                assert result.tokens == expected[: first + 1]
                assert result.finish_reason == "eos"
                assert session.tokens == prompt + result.tokens


@pytest.mark.parametrize("most", [1, 2, 3, 7, 40])
def test_max_new_tokens_is_exact(oracle: Engine, prompts: list[list[int]], answers: list[list[int]], most: int) -> None:
    for prompt, expected in zip(prompts, answers, strict=True):
        result = run(oracle.session(), prompt, most)
        ended = expected[:most][-1] in oracle.bundle.eos_token_ids
        assert (result.tokens, result.finish_reason) == (expected[:most], "eos" if ended else "length")


def test_the_context_is_a_limit(engine: Engine) -> None:
    most = engine.manifest.model.max_context
    prompt = np.random.default_rng(0).integers(3, 300, most - 5).tolist()
    result = run(engine.session(), prompt)
    assert (len(result.tokens), result.finish_reason) == (5, "context")
    with pytest.raises(UsageError, match=f"{most} tokens, but this engine's context is {most}"):
        run(engine.session(), prompt + [5] * 5)


@pytest.mark.parametrize(
    ("prompt", "options", "sentence"),
    [
        ([], {}, "The prompt is empty"),
        ("", {}, "The prompt is empty"),
        ([5, 100000], {}, "outside 0..319"),
        ([-1], {}, "outside 0..319"),
        ([5], {"most": 0}, "max_new_tokens is 0"),
    ],
)
def test_a_wrong_call_gets_a_sentence(engine: Engine, prompt: list[int] | str, options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run(engine.session(), prompt, **options)


@pytest.mark.parametrize("speculate", [True, False])
def test_the_common_beginning_is_processed_once(
    oracle: Engine, prompts: list[list[int]], answers: list[list[int]], speculate: bool
) -> None:
    session = oracle.session(speculate=speculate)
    first = run(session, prompts[5])
    again = [*prompts[5], *first.tokens, 7, 8, 9]
    second = run(session, again)
    assert second.stats.reused_tokens >= len(again) - 3 - LAST_ROUND
    assert second.tokens == plain(oracle, again).tokens
    edited = [*prompts[5][:60], 11, 12]
    third = run(session, edited)
    assert third.stats.reused_tokens == 59
    assert third.tokens == plain(oracle, edited).tokens
    session.reset()
    assert run(session, prompts[5]).stats.reused_tokens == 0


def test_an_answer_can_be_left_and_the_session_goes_on(
    oracle: Engine, prompts: list[list[int]], answers: list[list[int]]
) -> None:
    session = oracle.session()
    for leave in range(1, 8):
        for number, _ in enumerate(session.generate(prompts[4], 40), 1):
            if number == leave:
                break
        assert run(session, prompts[3]).tokens == answers[3]
        assert run(session, [*session.tokens, 9]).tokens == plain(oracle, [*prompts[3], *answers[3], 9]).tokens


def test_sessions_share_an_engine_across_threads(oracle: Engine, prompts: list[list[int]], answers: list[list[int]]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> list[list[int]]:
        session = oracle.session(speculate=number % 3 > 0)
        return [run(session, prompt).tokens for prompt in prompts]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(ask, range(6)):
            assert found == answers


def test_a_saved_session_continues(
    tmp_path: Path, engine: Engine, oracle: Engine, prompts: list[list[int]], answers: list[list[int]]
) -> None:
    session = oracle.session()
    run(session, prompts[6])
    session.save(tmp_path / "talk.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["talk.npz"]
    again = [*prompts[6], *answers[6], 5, 6]
    for speculate in (True, False):
        restored = oracle.restore(tmp_path / "talk.npz", speculate=speculate)
        result = run(restored, again)
        assert result.stats.reused_tokens >= len(again) - 2 - LAST_ROUND
        assert result.tokens == plain(engine, again).tokens


DAMAGES: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "fewer heads": lambda found: {**found, "target_keys": found["target_keys"][:, :1]},
    "another type": lambda found: {**found, "target_keys": found["target_keys"].astype(np.float64)},
    "values of another length": lambda found: {**found, "target_values": found["target_values"][:, :, :-1]},
    "more rows than tokens": lambda found: {**found, "tokens": found["tokens"][:2]},
    "a token outside the vocabulary": lambda found: {**found, "tokens": found["tokens"] + (1 << 40)},
    "tokens that are no numbers": lambda found: {**found, "tokens": found["tokens"].astype(str)},
    "no tokens": lambda found: {name: value for name, value in found.items() if name != "tokens"},
    "no keys": lambda found: {name: value for name, value in found.items() if name != "target_keys"},
    "keys that are no rows": lambda found: {**found, "draft_keys": np.float32(1)},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_saved_session_is_told(tmp_path: Path, engine: Engine, prompts: list[list[int]], damage: str) -> None:
    session = engine.session()
    run(session, prompts[2], 5)
    session.save(tmp_path / "talk.npz")
    with np.load(tmp_path / "talk.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files}
    np.savez(tmp_path / "wrong.npz", **DAMAGES[damage](found))
    with pytest.raises(EngineError, match="does not fit this engine: .*; it is damaged"):
        engine.restore(tmp_path / "wrong.npz")
    expected = session.tokens[:]
    with pytest.raises(EngineError, match="damaged"):
        session.load(tmp_path / "wrong.npz")
    assert run(session, expected).tokens == plain(engine, expected).tokens, "and the session that refused it goes on"


def test_what_is_no_saved_session_is_told(tmp_path: Path, engine: Engine, prompts: list[list[int]]) -> None:
    session = engine.session()
    run(session, prompts[2], 5)
    session.save(tmp_path / "talk.npz")
    whole = (tmp_path / "talk.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.save(tmp_path / "array.npy", np.arange(3))
    for name in ("cut.npz", "array.npy"):
        with pytest.raises(EngineError, match="damaged"):
            engine.restore(tmp_path / name)
    with np.load(tmp_path / "talk.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files}
    np.savez(tmp_path / "other.npz", **{**found, "engine": np.array("another")})
    with pytest.raises(UsageError, match="not saved by this engine"):
        engine.restore(tmp_path / "other.npz")
    with pytest.raises(UsageError, match="no saved session"):
        engine.restore(tmp_path / "none.npz")


def test_optimised_python_refuses_a_damaged_session_too(tmp_path: Path, tiny_engine: Path, engine: Engine) -> None:
    session = engine.session()
    run(session, [5, 6, 7], 5)
    session.save(tmp_path / "talk.npz")
    with np.load(tmp_path / "talk.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files}
    np.savez(tmp_path / "wrong.npz", **DAMAGES["fewer heads"](found))
    code = f"from jakiro_runtime import Engine; Engine.open({str(tiny_engine)!r}).restore({str(tmp_path / 'wrong.npz')!r})"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert "does not fit this engine" in done.stderr


def test_an_older_answer_of_a_session_does_not_go_on(oracle: Engine, prompts: list[list[int]], answers: list[list[int]]) -> None:
    session = oracle.session()
    older = session.generate(prompts[3], 40)
    next(older)
    newer = session.generate(prompts[4], 40)
    first = next(newer)
    with pytest.raises(UsageError, match="begun another answer"):
        next(older)
    assert [*first.tokens, *(token for chunk in newer for token in chunk.tokens)] == answers[4]


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, seed=4)])
def test_a_batch_answers_as_each_alone(oracle: Engine, prompts: list[list[int]], sampling: Sampling | None) -> None:
    eos = plain(oracle, prompts[0], sampling=sampling).tokens[6]  # some rows leave the batch early
    ending = Engine(oracle.bundle.replace(eos_token_ids=frozenset([eos])))
    alone = [plain(ending, prompt, sampling=sampling) for prompt in prompts]
    assert len({len(result.tokens) for result in alone}) > 1
    for speculate in (True, False):
        together = ending.generate(prompts, max_new_tokens=40, sampling=sampling, speculate=speculate, chunk=50)
        for ours, theirs in zip(together, alone, strict=True):
            assert (ours.tokens, ours.text, ours.finish_reason) == (theirs.tokens, theirs.text, theirs.finish_reason)
    assert ending.generate([]) == []


@pytest.mark.slow
def test_a_jakiro_star_engine_changes_nothing(tmp_path: Path, tiny_target: Path, prompts: list[list[int]]) -> None:
    import tiny

    head = tiny.make_star_head(tmp_path / "head", third=False)
    star = Engine.open(tiny.make_engine(tmp_path / "engine", tiny_target, head))
    assert (star.manifest.draft.variant, star.manifest.draft.nodes, star.manifest.draft.levels) == ("jakiro_star", 26, 6)
    for prompt in prompts[:5]:
        assert run(star.session(), prompt).tokens == plain(star, prompt).tokens
