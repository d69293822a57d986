"""An engine directory, opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from jakiro_runtime import batch
from jakiro_runtime.backends import Graph, Options, choose, open_graphs
from jakiro_runtime.decoding.sequence import Answer, GenerationResult
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.format.manifest import Manifest, check_integrity
from jakiro_runtime.sampling.sampler import Sampler, Sampling
from jakiro_runtime.session import Session
from jakiro_runtime.text.chat import ChatTemplate, Message

if TYPE_CHECKING:
    from jakiro_runtime.sampling.grammar import Grammar


class Engine:
    """Two graphs, a tokenizer and a chat template. Holds the weights; sessions hold the state, and may share an engine.

    Use `Engine.open`.

    backend: the name of what runs the graphs
    """

    backend = "onnxruntime"

    def __init__(self, manifest: Manifest, target: Graph, draft: Graph, tokenizer: Tokenizer, template: ChatTemplate | None):
        self.manifest, self.target, self.draft = manifest, target, draft
        self.tokenizer, self.template = tokenizer, template
        self.eos_token_ids = frozenset(manifest.model.eos_token_ids)

    def parts(self) -> tuple[Graph, Graph, Tokenizer, ChatTemplate | None]:
        """Everything but the manifest, as the constructor takes it."""
        return self.target, self.draft, self.tokenizer, self.template

    @staticmethod
    def open(
        directory: str | os.PathLike[str],
        backend: str = "auto",
        threads: int | None = None,
        full_check: bool = False,
        plugin: str | os.PathLike[str] | None = None,
    ) -> Engine:
        """Open an engine directory that jakiro-export wrote.

        Args:
            backend: what runs the graphs: "onnxruntime" (CPU), "cuda" (ONNX Runtime on a GPU), "tensorrt", "tensorrt-rtx"; "auto"
                takes the engines that were built for this machine's GPU, and the CPU where there are none
            threads: for the CPU; one per physical core by default
            full_check: read every file again, even one that was found right before
            plugin: libjakiro_plugins.so, for a GPU

        Raises:
            UsageError: no engine there
            EngineError: a file is missing, changed, or of a newer schema; the backend is not installed or has no GPU
        """
        folder = Path(directory)
        manifest = Manifest.read(folder)
        name = choose(manifest, backend)
        # engines for GPUs are the backend's to check, once it knows which of them it loads
        check_integrity(
            manifest,
            folder,
            full_check,
            None if full_check else [file for file in manifest.files if not file.startswith("tensorrt/")],
        )
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises plain Exception
            raise EngineError(f"{folder / 'tokenizer.json'} cannot be read: {error}.") from error
        opened = open_graphs(folder, manifest, name, Options(threads, Path(plugin).absolute() if plugin else None))
        if opened.max_context is not None:
            manifest.model.max_context = min(manifest.model.max_context, opened.max_context)
        engine = Engine(manifest, opened.target, opened.draft, tokenizer, ChatTemplate.read(folder))
        engine.backend = name
        return engine

    def session(self, **options: Any) -> Session:
        """A new conversation; options as `Session` takes them."""
        return Session(self, **options)

    def restore(self, file: str | os.PathLike[str], **options: Any) -> Session:
        """A conversation that `Session.save` wrote; options as `Session` takes them. Raises as `Session.load`."""
        session = Session(self, **options)
        session.load(file)
        return session

    def generate(self, prompts: Sequence[Sequence[int] | str], **options: Any) -> list[GenerationResult]:
        """Answer several prompts in one batch; options as `jakiro_runtime.batch.generate` takes them."""
        return batch.generate(self, prompts, **options)

    @property
    def fingerprint(self) -> str:
        """What a saved session must come from: the graphs' checksums."""
        return " ".join(record.sha256 for name, record in sorted(self.manifest.files.items()) if ".onnx" in name)

    def answer(
        self,
        prompt: Sequence[int] | str,
        max_new_tokens: int,
        sampling: Sampling | None,
        stop: Sequence[str],
        grammar: Grammar | None,
        levels: int,
    ) -> Answer:
        """An answer about to begin. Arguments as `Session.generate`; `levels`: of the tree.

        Raises:
            UsageError: the prompt is empty, holds a number that is no token, or does not fit the context
        """
        ids = self.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        model = self.manifest.model
        if not ids:
            raise UsageError("The prompt is empty; give at least one token.")
        if min(ids) < 0 or max(ids) >= model.vocab_size:
            raise UsageError(f"The prompt holds a token outside 0..{model.vocab_size - 1}, the engine's vocabulary.")
        if len(ids) >= model.max_context:
            raise UsageError(
                f"The prompt has {len(ids)} tokens, but this engine's context is {model.max_context}, answer included."
            )
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; at least 1 is expected.")
        stops = [stop] if isinstance(stop, str) else list(stop)
        constraint = grammar.start() if grammar is not None else None
        sampler = Sampler(sampling or Sampling(), self.eos_token_ids, model.vocab_size, constraint)
        return Answer(ids, sampler, self.tokenizer, stops, self.eos_token_ids, max_new_tokens, model.max_context, levels)

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
