"""An engine directory, opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jakiro_runtime.backend import Graph, open_graph
from jakiro_runtime.chat import ChatTemplate, Message
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.manifest import Manifest, verify
from jakiro_runtime.session import Session


class Engine:
    """Two graphs, a tokenizer and a chat template. Holds the weights; sessions hold the state, and may share an engine.

    Use `Engine.open`.
    """

    def __init__(self, manifest: Manifest, target: Graph, draft: Graph, tokenizer: Tokenizer, template: ChatTemplate | None):
        self.manifest, self.target, self.draft = manifest, target, draft
        self.tokenizer, self.template = tokenizer, template
        self.eos_token_ids = frozenset(manifest.model.eos_token_ids)

    @staticmethod
    def open(
        directory: str | os.PathLike[str], backend: str = "onnxruntime", threads: int | None = None, full_check: bool = False
    ) -> Engine:
        """Open an engine directory that jakiro-export wrote.

        Args:
            backend: what runs the graphs
            threads: for the CPU; one per physical core by default
            full_check: read every file again, even one that was found right before

        Raises:
            UsageError: no engine there
            EngineError: a file is missing, changed, or of a newer schema; the backend is not installed
        """
        folder = Path(directory)
        manifest = Manifest.read(folder)
        verify(manifest, folder, full=full_check)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises plain Exception
            raise EngineError(f"{folder / 'tokenizer.json'} cannot be read: {error}.") from error
        target, draft = (open_graph(folder / manifest.graphs[name], backend, threads) for name in ("target", "draft"))
        return Engine(manifest, target, draft, tokenizer, ChatTemplate.read(folder))

    def session(self, **options: Any) -> Session:
        """A new conversation; options as `Session` takes them."""
        return Session(self, **options)

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
