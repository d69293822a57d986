"""What is open and never changes: the manifest, both graphs, the tokenizer, the chat template. Knows nothing above it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jakiro_runtime.backends import BackendOptions, Graph, needed_files, open_graphs, select_backend
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.format.integrity import check_integrity
from jakiro_runtime.format.manifest import EXPORT_AGAIN, NAME, Manifest
from jakiro_runtime.text.chat import ChatTemplate, Message
from jakiro_runtime.text.encoder import TextEncoder, read_tokenizer


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

    @cached_property
    def encoder(self) -> TextEncoder:
        """The tokenizer as prompts need it."""
        return TextEncoder(self.tokenizer)

    def encode(self, text: str, special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of text as the model sees it.

        Args:
            special: add what the tokenizer puts around a bare prompt; templates write their own
            parse_special: special tokens that the text spells, such as "<|im_end|>", are special; else they are plain text

        Raises:
            UsageError: the text is no valid Unicode
        """
        return self.encoder.encode(text, special, parse_special)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        parse_special: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer.

        Args:
            messages, tools, documents, variables: as `ChatTemplate.render` takes them
            parse_special: special tokens that these spell are special too; by default they are plain text, so that what a user
                writes cannot end the user's turn. The template's own always are special.

        Raises:
            UsageError: the model has no chat template, or the text is no valid Unicode
            EngineError: the template refuses the conversation
        """
        template = self.template
        if template is None:
            raise UsageError("This engine's model has no chat template; give the prompt as it stands (jakiro-run --raw).")

        def render(given: Mapping[str, Any]) -> str:
            return template.render(given["messages"], given["tools"], given["documents"], **given["variables"])

        given = {"messages": list(messages), "tools": tools, "documents": documents, "variables": variables}
        if parse_special:
            return self.encode(render(given), special=False)
        return self.encoder.encode_rendered(given, render)


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
    check_integrity(manifest, folder, check_files, manifest.files if check_files else needed_files(manifest, name))
    loaded = open_graphs(folder, manifest, name, BackendOptions(threads, Path(plugin).absolute() if plugin else None))
    for graph, contract in ((loaded.target, manifest.target_contract), (loaded.draft, manifest.draft_contract)):
        difference = contract.difference(graph.inputs, graph.outputs, graph.dims)
        if difference is not None:
            raise EngineError(f"The {contract.name} graph of {folder} is not what {NAME} says: {difference}; {EXPORT_AGAIN}.")
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
