"""Answers of a given form, the same with speculation on and off."""

from __future__ import annotations

import json
import re

import pytest
from tokenizers import Tokenizer

from answers import plain, run
from grammars import FORMS
from jakiro_runtime import Engine, EngineError, Sampling, UsageError
from oracle import with_oracle


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.2, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("form", FORMS)
def test_the_form_holds_and_speculation_changes_nothing(
    engine: Engine, prompts: list[list[int]], form: str, sampling: Sampling | None
) -> None:
    grammar = engine.grammar(**FORMS[form])
    for prompt in prompts[:5]:
        expected = plain(engine, prompt, 80, sampling=sampling, grammar=grammar)
        if expected.finish_reason == "eos":
            if form == "json":
                found = json.loads(expected.text)
                assert set(found) == {"name", "age"}
                assert 0 <= found["age"] <= 99
            else:
                pattern = FORMS[form].get("regex", "a[bc]+d")
                assert re.fullmatch(pattern, expected.text)
        oracle = with_oracle(engine, [[*prompt, *expected.tokens]])
        for target in (oracle, engine):
            result = run(target.session(), prompt, 80, sampling=sampling, grammar=grammar)
            assert (result.tokens, result.text, result.finish_reason) == (
                expected.tokens, expected.text, expected.finish_reason,
            )  # fmt: skip
    assert any(plain(engine, p, 80, sampling=sampling, grammar=grammar).finish_reason == "eos" for p in prompts[:5])


def test_forbidden_nodes_are_not_verified(engine: Engine, prompts: list[list[int]]) -> None:
    grammar = engine.grammar(regex="[ab]{30}")
    session = engine.session(lookup=False)  # what it looks up here is allowed
    rows = []
    target = session._decoder.target
    before = target.run
    target.run = lambda tokens, *rest: (rows.append(len(tokens[0])), before(tokens, *rest))[1]  # type: ignore[method-assign]
    run(session, prompts[3], 40, grammar=grammar)
    assert max(rows[1:]) <= 8 < engine.manifest.draft.nodes + 1


@pytest.mark.parametrize(
    ("form", "sentence"),
    [({}, "exactly one"), ({"regex": "("}, "does not compile"), ({"json_schema": "{"}, "is not JSON"),
     ({"lark": "start: ("}, "does not compile")],
)  # fmt: skip
def test_a_wrong_grammar_gets_a_sentence(engine: Engine, form: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        engine.grammar(**form)


@pytest.mark.parametrize(
    "form",
    [{"regex": "(" * 20000 + "a" + ")" * 20000}, {"lark": "start: A\nA: " + "~" * 20000 + "/a/"},
     {"json_schema": "[" * 100000}, {"regex": "\udcff"}],
    ids=["brackets", "negations", "schema", "unicode"],
)  # fmt: skip
def test_a_hostile_grammar_gets_a_sentence(engine: Engine, form: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jakiro_runtime.sampling.grammar_trial._SECONDS", 2)
    with pytest.raises(UsageError, match="grammar|JSON schema"):
        engine.grammar(**form)


def test_a_tokenizer_with_an_absurd_id_gets_a_sentence(engine: Engine) -> None:
    data = json.loads(engine.bundle.tokenizer.to_str())
    data["model"]["vocab"]["("] = 1 << 31  # llguidance would make a table of as many
    bundle = engine.bundle.replace(tokenizer=Tokenizer.from_str(json.dumps(data)))
    with pytest.raises(EngineError, match="has the id 2147483648"):
        Engine(bundle).grammar(regex="a+")


@pytest.mark.parametrize(
    "form",
    [{"regex": "|".join(f"w{n}" for n in range(3000))}, {"json_schema": '{"type": "string", "minLength": 100000000}'}],
    ids=["words", "length"],
)
def test_a_large_grammar_compiles(engine: Engine, form: dict) -> None:
    assert engine.grammar(**form).start().allowed() is not None
