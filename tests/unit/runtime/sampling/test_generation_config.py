"""What a checkpoint's generation config asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jakiro_runtime import EngineError, Sampling
from jakiro_runtime.sampling.generation_config import GenerationDefaults


def read(folder: Path, config: Any) -> GenerationDefaults:
    (folder / "generation_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return GenerationDefaults.read(folder)


def test_warpers_count_where_the_checkpoint_draws_and_penalties_always(tmp_path: Path) -> None:
    assert GenerationDefaults.read(tmp_path).asked == {}
    assert read(tmp_path, {"eos_token_id": 2, "temperature": 0.6, "max_length": 4096}).asked == {}
    assert read(tmp_path, {"repetition_penalty": 1.1, "top_k": 20}).asked == {"repetition_penalty": 1.1}
    found = read(tmp_path, {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": None})
    assert found.sampling == Sampling(temperature=0.6, top_k=50, top_p=0.9)
    assert found.asked == {"temperature": 0.6, "top_k": 50, "top_p": 0.9}


def test_what_this_runtime_does_not_have_is_named(tmp_path: Path) -> None:
    found = read(tmp_path, {"no_repeat_ngram_size": 3, "typical_p": 1.0, "num_beams": 1, "suppress_tokens": [5]})
    assert set(found.unsupported) == {"no_repeat_ngram_size", "suppress_tokens"}


@pytest.mark.parametrize("config", ["{", "[]", {"repetition_penalty": 0}, {"do_sample": True, "top_p": "a"}, "[" * 100000])
def test_a_damaged_file_gets_a_sentence(config: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="generation_config"):
        read(tmp_path, config)
