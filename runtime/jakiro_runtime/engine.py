"""Engine: the facade of the runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from jakiro_runtime import batch
from jakiro_runtime.bundle import Bundle, open_bundle
from jakiro_runtime.decoding.sequence import GenerationResult
from jakiro_runtime.format.manifest import Manifest
from jakiro_runtime.sampling.grammar import Grammar
from jakiro_runtime.session import Session
from jakiro_runtime.text.chat import Message


class Engine:
    """An opened engine directory: sessions, batches, prompts and grammars are made here. Use `Engine.open`.

    bundle: what is open; sessions share it
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @staticmethod
    def open(
        directory: str | os.PathLike[str],
        backend: str = "auto",
        threads: int | None = None,
        check_files: bool = False,
        plugin: str | os.PathLike[str] | None = None,
    ) -> Engine:
        """Open an engine directory that jakiro-export wrote.

        Args:
            backend: what runs the graphs: "onnxruntime" (CPU), "cuda" (ONNX Runtime on a GPU), "tensorrt", "tensorrt-rtx"; "auto"
                takes the engines that were built for this machine's GPU, and the CPU where there are none
            threads: for the CPU; one per physical core by default
            check_files: read every file again and compare its checksum, even one that was found right before
            plugin: libjakiro_plugins.so, for a GPU

        Raises:
            UsageError: no engine there
            EngineError: a file is missing, changed, or of a newer schema; the backend is not installed or has no GPU
        """
        return Engine(open_bundle(directory, backend, threads, check_files, plugin))

    @property
    def manifest(self) -> Manifest:
        """What `engine.json` says."""
        return self.bundle.manifest

    def session(self, **options: Any) -> Session:
        """A new conversation; options as `Session` takes them."""
        return Session(self.bundle, **options)

    def restore(self, file: str | os.PathLike[str], **options: Any) -> Session:
        """A conversation that `Session.save` wrote; options as `Session` takes them. Raises as `Session.load`."""
        session = Session(self.bundle, **options)
        session.load(file)
        return session

    def generate(self, prompts: Sequence[Sequence[int] | str], **options: Any) -> list[GenerationResult]:
        """Answer several prompts in one batch; options as `jakiro_runtime.batch.generate` takes them."""
        return batch.generate(self.bundle, prompts, **options)

    def encode(self, text: str, special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of text as the model sees it; arguments and errors as `Bundle.encode`."""
        return self.bundle.encode(text, special, parse_special)

    def chat_prompt(self, messages: Sequence[Message], parse_special: bool = False, **context: Any) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer; arguments and errors as `Bundle.chat_prompt`."""
        return self.bundle.chat_prompt(messages, parse_special, **context)

    def grammar(self, **form: Any) -> Grammar:
        """A rule for answers: json_schema=, regex= or lark=. Raises as `Grammar`."""
        bundle = self.bundle
        return Grammar(bundle.tokenizer, bundle.manifest.model.vocab_size, bundle.eos_token_ids, **form)
