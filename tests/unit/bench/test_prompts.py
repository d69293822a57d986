"""The prompts file: what is refused, and what is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from benching import bench
from jakiro_bench.prompts import read_prompts
from paths import ROOT


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no prompts file"),
        ("", "holds no prompts"),
        ("\n \n", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt": ', "line 2 is not JSON"),
        ('{"text": "a"}', "line 1 has neither `turns`"),
        ('{"turns": []}', "line 1 has neither"),
        ('{"turns": ["a", 3]}', "line 1 has neither"),
        ('{"prompt": "  "}', "line 1 has neither"),
        ('["a"]', "line 1 has neither"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_an_unusable_prompts_file_is_one_sentence(
    tmp_path: Path, tiny_engine: Path, content: str | bytes | None, words: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = bench(tiny_engine, file)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_shipped_prompts_are_readable_and_varied() -> None:
    prompts = read_prompts(ROOT / "examples" / "smollm2" / "prompts.jsonl")
    assert len(prompts) >= 16
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert len({prompt.category for prompt in prompts}) >= 8
    assert any(len(prompt.turns) > 1 for prompt in prompts)
