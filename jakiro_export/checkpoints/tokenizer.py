"""The tokenizer of a target, as the runtime will read it: checked before anything is computed, written when the rest is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from jakiro_export.errors import ExportError
from jakiro_runtime.errors import UserError
from jakiro_runtime.text.chat import ChatTemplate
from jakiro_runtime.text.encoder import TextEncoder, read_tokenizer

_SAMPLE = "The quick brown fox jumps over 13 lazy dogs; naïve café, 漢字, 😀.\n\n  def f(x):\n\treturn x\n" * 8


def check_tokenizer(tokenizer: Any, where: Path) -> None:
    """Write a tokenizer of transformers elsewhere and read it as the runtime does.

    Raises:
        ExportError: it has no fast form, the runtime reads other tokens than transformers, or its chat template cannot be parsed
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(tokenizer, folder, where)
        try:
            read = TextEncoder(read_tokenizer(folder / "tokenizer.json"))
            ChatTemplate.read(folder)
            ids = read.encode(_SAMPLE)
        except UserError as error:
            raise ExportError(f"The tokenizer of {where} cannot be used: {str(error).replace(f'{folder}/', '')}") from error
    expected = list(tokenizer(_SAMPLE, truncation=False)["input_ids"])
    if ids != expected:
        place = next((n for n, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), min(len(ids), len(expected)))
        raise ExportError(
            f"The tokenizer of {where} differs from its tokenizer.json at token {place} of a sample text, so the runtime would "
            "read prompts in another way than the model was trained for; save it again with transformers."
        )


def write_tokenizer(tokenizer: Any, folder: Path, where: Path) -> None:
    """Write what the runtime needs of a tokenizer of transformers. Raises ExportError where it has no fast form."""
    tokenizer.save_pretrained(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ExportError(f"The tokenizer of {where} has no fast form (tokenizer.json), which the runtime needs.")
