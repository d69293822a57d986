"""Text as it comes: whole characters, nothing taken back, stop strings never shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from answers import plain, run
from jakiro_runtime import Engine
from jakiro_runtime.text.stream import TextStream
from oracle import with_oracle


def stream(tokenizer: Tokenizer, tokens: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text = TextStream(tokenizer, stops)
    pieces = []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped:
            break
    pieces.append(text.flush())
    return pieces, text.stopped


@given(st.text(max_size=40))
def test_pieces_add_up_and_split_no_character(engine: Engine, words: str) -> None:
    tokens = engine.encode(words)
    pieces, _ = stream(engine.bundle.tokenizer, tokens)
    assert "".join(pieces) == engine.bundle.tokenizer.decode(tokens)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in words


def test_a_character_cut_by_the_end_is_shown_as_such(engine: Engine) -> None:
    tokens = engine.encode("aé")
    pieces, _ = stream(engine.bundle.tokenizer, tokens[:-1])
    assert "".join(pieces) == "a\ufffd"
    assert pieces[-1] == "\ufffd"


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(engine: Engine, words: str, stops: list[str]) -> None:
    pieces, stopped = stream(engine.bundle.tokenizer, engine.encode(words), tuple(stops))
    ends = [words.find(stop) for stop in stops if stop in words]
    assert stopped == bool(ends)
    shown = "".join(pieces)
    # the token that completes any stop string ends the text; what it completes is cut where it begins
    if ends:
        first = min(words.find(stop) + len(stop) for stop in stops if stop in words)
        begins = min(place for place in (words[:first].find(stop) for stop in stops) if place >= 0)
        assert shown == words[:begins]
    else:
        assert shown == words
    for stop in stops:
        assert stop not in shown


@pytest.mark.parametrize("speculate", [True, False])
def test_stops_span_tokens_and_rounds(engine: Engine, prompts: list[list[int]], speculate: bool) -> None:
    prompt, whole = next(  # one that says enough; what a random model says depends on the machine
        (prompt, answer)
        for prompt in [[n, *prompts[4]] for n in range(3, 99)]
        if len((answer := plain(engine, prompt)).tokens) == 40
    )
    oracle = with_oracle(engine, [[*prompt, *whole.tokens]])
    stop = next(whole.text[n : n + 3] for n in range(6, 30) if whole.text[n : n + 3].isascii())
    session = oracle.session(speculate=speculate)
    result = run(session, prompt, stop=[stop, "never"])
    assert result.finish_reason == "stop"
    assert result.text == whole.text[: whole.text.find(stop)]
    assert result.tokens == whole.tokens[: len(result.tokens)]
    assert stop in engine.bundle.tokenizer.decode(result.tokens)
    assert stop not in engine.bundle.tokenizer.decode(result.tokens[:-1])
    again = run(session, [*prompt, *result.tokens, 5])
    assert again.tokens == plain(engine, [*prompt, *result.tokens, 5]).tokens
