"""The C++ runtime gives the tokens and counts of the Python one, whatever the prompt, the tree and the chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import native
import tiny
from answers import run
from jakiro_runtime import Engine
from native import same

OPTIONS: list[dict[str, Any]] = [{}, {"speculate": False}, {"nodes": 5}, {"lookup": False}, {"chunk": 7}]
REPEATING = [5, 6, 7, 9] * 15


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_answers_are_those_of_the_python_runtime(
    engine: Engine, native_engine: native.NativeEngine, prompts: list[list[int]], options: dict[str, Any]
) -> None:
    python, cpp = engine.session(**options), native_engine.session(**options)
    accepted = 0
    for prompt in [*prompts, REPEATING, [5] * 1010]:
        expected = run(python, prompt, 30)
        assert same(expected, cpp.generate(prompt, 30))
        accepted += sum(expected.stats.accepted)
    # a random head alone is seldom right, n-grams often are
    assert accepted > 10 or {"speculate", "lookup"} & set(options), "hardly a tree was ever accepted, which shows nothing"


def test_rounds_verify_the_same_nodes_by_a_measured_plan(
    library: native.Library, planned_engine: Path, prompts: list[list[int]]
) -> None:
    python, cpp = Engine.open(planned_engine).session(), library.open(planned_engine).session()
    drafts = []
    for prompt in [*prompts[:5], REPEATING]:
        expected = run(python, prompt, 80)
        assert same(expected, cpp.generate(prompt, 80))
        drafts.append(expected.stats.drafts < expected.stats.rounds)
    assert any(drafts), "no round went without a draft, which shows nothing of the budget"


@pytest.mark.slow
def test_int8_answers_are_the_same(library: native.Library, tiny_int8: Path, prompts: list[list[int]]) -> None:
    python, cpp = Engine.open(tiny_int8).session(), library.open(tiny_int8).session()
    for prompt in prompts:
        assert same(run(python, prompt, 30), cpp.generate(prompt, 30))


@pytest.mark.slow
def test_a_head_of_two_layers_that_reads_three_of_the_target_s(
    library: native.Library, tmp_path: Path, prompts: list[list[int]]
) -> None:
    target = tiny.make_target(tmp_path / "target", layers=5)
    engine = tiny.make_engine(tmp_path / "engine", target, tiny.make_eagle3_head(tmp_path / "head", layers=2), verify=False)
    python, cpp = Engine.open(engine).session(), library.open(engine).session()
    for prompt in prompts[:6]:
        assert same(run(python, prompt, 30), cpp.generate(prompt, 30))


@pytest.mark.slow
def test_halves_are_held_too(library: native.Library, half_engine: Path, prompts: list[list[int]]) -> None:
    python, cpp = Engine.open(half_engine).session(), library.open(half_engine).session()
    for prompt in prompts[:4]:
        assert same(run(python, prompt, 30), cpp.generate(prompt, 30))


def test_a_conversation_is_not_processed_again(engine: Engine, native_engine: native.NativeEngine) -> None:
    python, cpp = engine.session(), native_engine.session()
    prompt = list(range(10, 60))
    for turn in range(4):
        expected, found = run(python, prompt, 12), cpp.generate(prompt, 12)
        assert same(expected, found)
        assert (found.stats.reused_tokens > 0) == (turn > 0)
        prompt = [*prompt, *found.tokens, 40 + turn, 41]
    cpp.reset()
    assert cpp.generate(prompt, 12).stats.reused_tokens == 0


def test_a_stopped_answer_is_the_beginning_of_the_whole_one(native_engine: native.NativeEngine, engine: Engine) -> None:
    whole = run(engine.session(), [9, 8, 7], 40).tokens
    session = native_engine.session()
    rounds: list[list[int]] = []
    stopped = session.generate([9, 8, 7], 40, lambda tokens: rounds.append(tokens) or len(rounds) < 3)
    assert stopped.finish_reason == "cancelled"
    assert stopped.tokens == whole[: len(stopped.tokens)]
    assert len(stopped.chunks) == 3
    assert session.generate([9, 8, 7], 40).tokens == whole


MUTATIONS = {
    "the acceptance rule": ("decoding/tree.cpp", "tree.tokens[node] == path.tokens.back()", "true"),
    "the rows that are committed": ("decoding/decoder.cpp", "commit(output, path.rows)", "commit(output, {0})"),
    "the mask of the tree": ("decoding/tree.cpp", "visible[row] = 1;", "std::fill_n(visible, row + 1, 1);"),
    "the n-grams' prior": ("decoding/ngram.cpp", "{0.0, 0.2,", "{0.0, 0.9,"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_loop_would_be_noticed(
    build: Path, planned_engine: Path, prompts: list[list[int]], tmp_path: Path, name: str
) -> None:
    """Controls: each change of the C++ sources makes an answer or a count differ."""
    changed = native.Library(native.mutated(build, tmp_path, *MUTATIONS[name])).open(planned_engine).session()
    python = Engine.open(planned_engine).session()
    for prompt in [*prompts[:5], REPEATING]:
        try:
            if not same(run(python, prompt, 40), changed.generate(prompt, 40)):
                return
        except native.NativeError:
            return
    pytest.fail(f"{name} was changed, and nothing differs")
