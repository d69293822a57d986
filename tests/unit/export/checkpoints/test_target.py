"""Targets as others wrote them: quantised, tied in their own way, with code of their own, or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

import tiny
from jakiro_export.checkpoints.target import load_target
from jakiro_export.checkpoints.tokenizer import check_tokenizer, write_tokenizer
from jakiro_export.errors import ExportError
from jakiro_runtime.text.encoder import TextEncoder, read_tokenizer


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**data, **values}))


def change_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tiny.make_target(tmp_path / "target", layers=2)


METHODS = ["compressed-tensors", "bitsandbytes", "gptq", "awq", "fp8", "a method of next year"]


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_checkpoint_is_refused_by_what_its_configuration_says(target: Path, method: str) -> None:
    change(target, "config.json", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ExportError, match=f"quantised|cannot be read.*{method}"):
        load_target(target, "x")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32])
def test_integer_matrices_are_refused_though_nothing_says_that_they_are_quantised(target: Path, kind: torch.dtype) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(target, lambda tensors: tensors.update({name: (tensors[name] * 20).to(kind)}))
    with pytest.raises(ExportError, match="up_proj.weight holds u?int"):
        load_target(target, "x")


def test_a_projection_that_differs_from_a_tied_embedding_is_used(target: Path) -> None:
    """As transformers does; equal ones stay tied."""

    def add(factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
        return lambda tensors: tensors.update({"lm_head.weight": factor * tensors["model.embed_tokens.weight"]})

    change_tensors(target, add(1.0))
    same = load_target(target, "x")
    assert same.projection_name() == "model.embed_tokens.weight"
    change_tensors(target, add(2.0))
    found = load_target(target, "x")
    assert found.projection_name() == "lm_head.weight"
    assert found.parameters == same.parameters + tiny.VOCAB * 48
    theirs = found.model().get_output_embeddings().weight.detach().numpy()  # type: ignore[operator]
    np.testing.assert_array_equal(found.store.rows("lm_head.weight", 0, tiny.VOCAB), theirs)


def test_one_of_a_tied_pair_is_enough(target: Path) -> None:
    change_tensors(target, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    found = load_target(target, "x")
    assert found.embedding_name() == found.projection_name() == "lm_head.weight"
    assert found.tensor_name("model.embed_tokens.weight") == "lm_head.weight"


@pytest.mark.parametrize("known", [False, True])
def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """transformers asks at the terminal; a known architecture is read by transformers' own code."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append("asked") or "y")
    code = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel", "AutoTokenizer": ["evil.Evil", None]}
    (target / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(target, "config.json", auto_map=code, **({} if known else {"model_type": "evil"}))
    change(target, "tokenizer_config.json", auto_map=code)
    if known:
        load_target(target, "x")
    else:
        with pytest.raises(ExportError, match="cannot be read"):
            load_target(target, "x")
    assert not asked
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "[" * 100_000])
@pytest.mark.parametrize("file", ["generation_config.json", "model.safetensors.index.json"])
def test_a_damaged_file_is_named_before_any_work(target: Path, file: str, content: str) -> None:
    (target / file).write_text(content)
    with pytest.raises(ExportError, match=file):
        load_target(target, "x")


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["x"]}, {"weight_map": {"a": 3}}])
def test_an_index_without_its_map_is_named(target: Path, index: dict[str, object]) -> None:
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match="weight_map"):
        load_target(target, "x")


@pytest.mark.parametrize("ids", ["two", [2, "x"], {"a": 1}, 2.5])
def test_ends_of_an_answer_are_token_ids(target: Path, ids: object) -> None:
    change(target, "generation_config.json", eos_token_id=ids)
    with pytest.raises(ExportError, match="eos_token_id"):
        load_target(target, "x")


def with_sentencepiece(target: Path) -> Any:
    """The target with a SentencePiece model in the place of its tokenizer, of the kind that Llama 2 has; its own reader."""
    text = "The quick brown fox jumps over the lazy dog. Zwölf Boxkämpfer jagen Viktor über den großen Sylter Deich.\n" * 20
    written = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=written, vocab_size=tiny.VOCAB, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    for file in target.glob("*token*"):
        file.unlink()
    (target / "tokenizer.model").write_bytes(written.getvalue())
    said = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (target / "tokenizer_config.json").write_text(json.dumps({**said, "legacy": False}))
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def test_a_sentencepiece_tokenizer_alone_is_enough(target: Path, tmp_path: Path) -> None:
    reader = with_sentencepiece(target)
    tokenizer = load_target(target, "x").tokenizer()
    check_tokenizer(tokenizer, target)
    write_tokenizer(tokenizer, tmp_path, target)
    ours = TextEncoder(read_tokenizer(tmp_path / "tokenizer.json"))
    for text in ("The lazy fox", "Zwölf  große Boxkämpfer", "漢字 and 😀"):
        assert ours.encode(text) == [1, *reader.encode(text)]


def test_a_tokenizer_that_needs_a_package_says_so(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_sentencepiece(target)
    monkeypatch.setattr("jakiro_export.checkpoints.target.find_spec", lambda _: None)
    with pytest.raises(ExportError, match="pip install sentencepiece"):
        load_target(target, "x").tokenizer()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_prefixes_of_training_are_understood(target: Path, prefix: str) -> None:
    tensors = load_file(target / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, target / "model.safetensors")
    read = load_target(target, "t")
    name = "model.layers.0.mlp.up_proj.weight"
    assert read.tensor_name(name) == prefix + name
    assert read.embedding_name().startswith(prefix)
