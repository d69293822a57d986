"""What is open and never changes: the manifest, both graphs, the tokenizer, the chat template. Knows nothing above it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jakiro_runtime.backends import BackendOptions, Graph, open_graphs, select_backend
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.format.integrity import check_integrity
from jakiro_runtime.format.manifest import EXPORT_AGAIN, Manifest
from jakiro_runtime.text.chat import ChatTemplate, Message


@dataclass(frozen=True)
class Bundle:
    """An opened engine directory. Holds the weights; what decodes with it holds the state, and may share it.

    eos_token_ids: the tokens that end an answer
    backend: the name of what runs the graphs, for people to read
    flexible_rows: whether the graphs take any number of rows, not only what they were built for
    """

    manifest: Manifest
    target: Graph
    draft: Graph
    tokenizer: Tokenizer
    template: ChatTemplate | None
    eos_token_ids: frozenset[int]
    backend: str = "onnxruntime"
    flexible_rows: bool = True

    def replace(self, **changes: Any) -> Bundle:
        """The same with other parts."""
        return replace(self, **changes)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of text. `special` adds what the tokenizer puts around a bare prompt; templates write their own."""
        return list(self.tokenizer.encode(text, add_special_tokens=special).ids)

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer.

        Raises:
            UsageError: the model has no chat template
            EngineError: the template refuses the conversation
        """
        if self.template is None:
            raise UsageError("This engine's model has no chat template; give the prompt as it stands (jakiro-run --raw).")
        return self.encode(self.template.render(messages), special=False)


def open_bundle(
    directory: str | os.PathLike[str],
    backend: str = "auto",
    threads: int | None = None,
    check_files: bool = False,
    plugin: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Open an engine directory; arguments and errors as `Engine.open`."""
    folder = Path(directory)
    manifest = Manifest.read(folder)
    name = select_backend(manifest, backend)
    # engines for GPUs are the backend's to check, once it knows which of them it loads
    ours = [file for file in manifest.files if check_files or not file.startswith("tensorrt/")]
    check_integrity(manifest, folder, check_files, ours)
    loaded = open_graphs(folder, manifest, name, BackendOptions(threads, Path(plugin).absolute() if plugin else None))
    if loaded.max_context is not None:
        most = min(manifest.model.max_context, loaded.max_context)
        manifest = replace(manifest, model=replace(manifest.model, max_context=most))
    return Bundle(
        manifest,
        loaded.target,
        loaded.draft,
        read_tokenizer(folder / "tokenizer.json"),
        ChatTemplate.read(folder),
        frozenset(manifest.model.eos_token_ids),
        name,
        loaded.flexible_rows,
    )


def read_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer.json. Raises EngineError where it is damaged."""
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise EngineError(f"{file} cannot be read: {error}; {EXPORT_AGAIN}.") from error
