"""Streaming gives what decoding gives, for every decoder and every sequence of ids."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from jakiro_runtime.text.stream import TextStream

LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
DECODERS = {
    "llama": decoders.Sequence(LLAMA),
    "gemma": decoders.Sequence(LLAMA[:3]),
    "bytes alone": decoders.ByteFallback(),
    "strip before fuse": decoders.Sequence([decoders.Strip("▁", 2, 0), *LLAMA]),
    "strip both ends": decoders.Sequence([decoders.Replace("a", "ab"), *LLAMA[:3], decoders.Strip(" ", 2, 1)]),
    "replace in the whole": decoders.Sequence([*LLAMA, decoders.Replace("ab", "<>"), decoders.Replace(">a", "")]),
    "regex": decoders.Sequence([*LLAMA, decoders.Replace(Regex("a+"), "o")]),
    "metaspace": decoders.Metaspace(),
    "metaspace never": decoders.Metaspace(prepend_scheme="never"),
    "metaspace, bytes": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "word piece": decoders.WordPiece(),
    "word piece, bare": decoders.WordPiece(prefix="a", cleanup=False),
    "suffix": decoders.BPEDecoder("</w>"),
    "ctc": decoders.CTC(),
    "byte level": decoders.ByteLevel(),
    "byte level, fused": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse(), decoders.Replace("aa", "a")]),
    "none": None,
}
WORDS = [
    "b",
    "a",
    "ab",
    "▁",
    "▁a",
    "▁▁b",
    "é",
    "漢",
    "😀",
    "</w>",
    "b</w>",
    "##a",
    " .",
    " 's",
    "<0x4>",
    "<0xZZ>",
    "<0x+5>",
    "|",
    "<pad>",
]


def byte_fallback(decoder: decoders.Decoder | None) -> Tokenizer:
    """A tokenizer of the kind of Llama-2, Vicuna, Mistral and Gemma: words, every byte, special and other added tokens."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for word in [*WORDS, *sorted(pre_tokenizers.ByteLevel.alphabet())]:
        vocab.setdefault(word, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<tool>", special=False), AddedToken("naïve tool", special=False)])
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


TOKENIZERS = {name: byte_fallback(decoder) for name, decoder in DECODERS.items()}


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*map(stream.push, ids), stream.flush()]


def id_lists(size: int) -> st.SearchStrategy[list[int]]:
    """Ids of every kind: mostly bytes that make or break UTF-8, some words, specials, and numbers that are no token."""
    text = st.text(max_size=3).map(lambda text: [3 + byte for byte in text.encode()])
    byte = st.sampled_from([0x47, 0x20, 0xC3, 0xD7, 0xE2, 0x80, 0xA9, 0xF0, 0x9F, 0x98, 0xED, 0xFF]).map(lambda byte: [3 + byte])
    other = st.integers(0, size + 3).map(lambda number: [number])
    return st.lists(st.one_of(text, byte, other), max_size=24).map(lambda parts: list(chain(*parts)))


@pytest.mark.parametrize("name", DECODERS)
@given(st.data())
@settings(max_examples=30, deadline=None)
def test_streaming_equals_decoding(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(id_lists(tokenizer.get_vocab_size()))
    if name == "strip both ends":
        ids = [tokenizer.token_to_id("b"), *ids]  # the library panics where there is nothing to strip
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
@given(st.data())
@settings(max_examples=500, deadline=None)
def test_streaming_equals_decoding_at_length(name: str, data: st.DataObject) -> None:
    test_streaming_equals_decoding.hypothesis.inner_test(name, data)  # type: ignore[attr-defined]


def test_text_comes_with_its_token_where_nothing_can_change_it() -> None:
    tokenizer = TOKENIZERS["llama"]
    ids = [tokenizer.token_to_id(token) for token in ("▁a", "b", "<0xC3>", "<0xA9>", "▁a", "</s>", "b")]
    assert pieces(tokenizer, ids) == ["a", "b", "", "", "é a", "", "b", ""]


@pytest.mark.parametrize(
    ("stop", "tokens", "text", "count"),
    [
        ("</s>", ["a", "</s>", "b"], "a", 2),
        ("b</s>a", ["a", "b", "</s>", "a", "b"], "a", 4),
        ("</s>", ["a", "<0x0A>", "</s>", "b"], "a\n", 3),
        ("\n", ["a", "<0x0A>", "b"], "a", 2),  # a newline is a byte here: seen at once, not with the token after it
        ("\n\n", ["a", "<0x0A>", "b", "<0x0A>", "<0x0A>", "b"], "a\nb", 5),
        ("x", ["a", "<0xC3>", "b"], "a\ufffdb", 3),
        ("\ufffd", ["a", "<0xC3>", "<0xA9>", "b"], "aéb", 4),  # half a character is none
    ],
)
def test_stop_strings_of_special_tokens_and_of_bytes(stop: str, tokens: list[str], text: str, count: int) -> None:
    tokenizer = TOKENIZERS["llama"]
    stream, shown, used = TextStream(tokenizer, [stop]), "", 0
    for token in tokens:
        shown += stream.push(tokenizer.token_to_id(token))
        used += 1
        if stream.stopped:
            break
    assert (shown + stream.flush(), used) == (text, count)
