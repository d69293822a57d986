"""Sampled answers of the C++ runtime are those of the Python one, token for token, with speculation and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import native
from answers import run
from jakiro_runtime import Engine, Sampling
from native import same

SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 20},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.2},
    {"temperature": 1e-300},
    {"repetition_penalty": 1.5},
    {"logit_bias": {7: 8.0, 9: -1e9, 11: 3.5}, "min_new_tokens": 20},
    {"temperature": 1.0, "logit_bias": {2: 6.0}, "min_new_tokens": 6},
    {"temperature": 1.5, "logprobs": 3},
    {"logprobs": 0},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_sampled_answers_are_those_of_the_python_runtime(
    engine: Engine, native_engine: native.NativeEngine, setting: dict[str, object]
) -> None:
    drawn = set()
    for speculate in (True, False):
        python, cpp = engine.session(speculate=speculate), native_engine.session(speculate=speculate)
        for seed in (0, 1, 12345678901234567890):
            sampling = Sampling(**{**setting, "seed": seed})  # type: ignore[arg-type]
            for prompt in ([5, 6, 7], [20, 21, 22, 23] * 6):
                expected = run(python, prompt, 25, sampling=sampling)
                found = cpp.generate(prompt, 25, sampling=sampling)
                assert same(expected, found)
                assert found.logprobs == (expected.logprobs or [])
                drawn.add(tuple(found.tokens))
    assert len(drawn) >= (6 if setting.get("temperature", 0) > 0.1 else 2)  # type: ignore[operator]


def test_a_rule_of_the_callers_own(engine: Engine, native_engine: native.NativeEngine) -> None:
    def rule(tokens: Sequence[int], scores: np.ndarray) -> np.ndarray:
        scores[(tokens[-1] * 7 + len(tokens)) % 320] += 5.0
        return scores

    sampling = Sampling(temperature=0.7, seed=3, processors=(rule,))
    expected = run(engine.session(), [5, 6, 7], 25, sampling=sampling)
    assert same(expected, native_engine.session().generate([5, 6, 7], 25, sampling=sampling))
    assert expected.tokens != run(engine.session(), [5, 6, 7], 25, sampling=Sampling(temperature=0.7, seed=3)).tokens


def test_rules_that_leave_no_token_end_the_answer(engine: Engine, native_engine: native.NativeEngine) -> None:
    sampling = Sampling(processors=(lambda tokens, scores: scores - np.inf if len(tokens) > 9 else scores,))
    expected = run(engine.session(), [5, 6, 7], 25, sampling=sampling)
    found = native_engine.session().generate([5, 6, 7], 25, sampling=sampling)
    assert (found.finish_reason, len(found.tokens)) == ("constraint", 7)
    assert same(expected, found)


def test_scores_that_are_no_numbers_are_an_error(native_engine: native.NativeEngine) -> None:
    session = native_engine.session()
    with pytest.raises(native.NativeError, match="not numbers"):
        session.generate([5, 6], 9, sampling=Sampling(processors=(lambda tokens, scores: scores * np.nan,)))
    assert len(session.generate([5, 6], 9).tokens) == 9


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", float("nan"), "temperature is nan; expected a number of 0 or more"),
        ("temperature", -1.0, "temperature is -1"),
        ("top_k", -1, "top_k is -1; expected 0"),
        ("top_p", 1.5, "top_p is 1.5; expected above 0 and at most 1"),
        ("min_p", float("inf"), "min_p is inf"),
        ("repetition_penalty", 1e9, "repetition_penalty is 1e"),
        ("min_new_tokens", -4, "min_new_tokens is -4"),
    ],
)
def test_settings_out_of_range(native_engine: native.NativeEngine, field: str, value: float, words: str) -> None:
    sampling = Sampling()
    object.__setattr__(sampling, field, value)
    with pytest.raises(native.NativeError, match=words):
        native_engine.session().generate([5], sampling=sampling)


def test_a_bias_for_a_token_that_is_none(native_engine: native.NativeEngine) -> None:
    for token in (-1, 320, 1 << 30):
        with pytest.raises(native.NativeError, match="logit_bias names a token outside 0..319"):
            native_engine.session().generate([5], sampling=Sampling(logit_bias={token: 1.0}))


def test_a_wrong_draw_would_be_noticed(build: Path, tiny_engine: Path, engine: Engine, tmp_path: Path) -> None:
    """A control: the same distribution by other numbers."""
    change = ("sampling/warping.cpp", "u * cumulative.back()", "(1 - u) * cumulative.back()")
    changed = native.Library(native.mutated(build, tmp_path, *change)).open(tiny_engine)
    sampling = Sampling(temperature=1.0, seed=1)
    assert not same(
        run(engine.session(), [5, 6, 7], 25, sampling=sampling), changed.session().generate([5, 6, 7], 25, sampling=sampling)
    )
