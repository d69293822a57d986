"""A conversation with an engine: what it has processed is kept, and re-used by the next prompt that begins the same way."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jakiro_runtime.decoding.decoder import Decoder
from jakiro_runtime.decoding.sequence import GenerationChunk
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.sampling.sampler import Sampling

if TYPE_CHECKING:
    from jakiro_runtime.engine import Engine
    from jakiro_runtime.sampling.grammar import Grammar


class Session:
    """One conversation: its caches, and the tokens they stand for. Not for several threads at once; open several sessions.

    Args:
        engine: an opened engine
        speculate: False decodes with the target alone, in the same loop with an empty tree
        chunk: rows of a prompt that are processed in one call
        nodes: verify only the best so many nodes of every tree, no more than the engine drafts
        lookup: what followed the last tokens where they stood before, in the prompt or the answer, is verified, too

    tokens: what the caches stand for, and the one token that they do not hold yet
    stats: figures of the last answer
    """

    def __init__(
        self, engine: Engine, speculate: bool = True, chunk: int = 128, nodes: int | None = None, lookup: bool = True
    ) -> None:
        self.engine = engine
        self.stats = Stats()
        self.tokens: list[int] = []
        self._decoder = Decoder(engine, 1, speculate, chunk, nodes, lookup)

    def generate(
        self,
        prompt: Sequence[int] | str,
        max_new_tokens: int = 512,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
    ) -> Iterator[GenerationChunk]:
        """Answer a prompt, an event a round. What the prompt shares with the conversation so far is not processed again.

        Leaving the iterator early cancels the answer; the session can go on from there.

        Args:
            prompt: token ids, or text as the model sees it (chat templates: `Engine.chat_prompt`)
            max_new_tokens: the most tokens of the answer
            sampling: how tokens are chosen; greedy by default
            stop: the answer ends where one of these strings appears, and does not hold it
            grammar: what the answer must look like

        Raises:
            UsageError: the prompt is empty, holds a number that is no token, or does not fit the context
        """
        decoder, clock = self._decoder, time.perf_counter
        answer = self.engine.answer(prompt, max_new_tokens, sampling, stop, grammar, decoder.levels)
        stats = self.stats = answer.stats
        started = clock()
        stats.reused_tokens = self._reuse(answer.tokens)
        decoder.truncate(0, stats.reused_tokens)
        self.tokens = answer.tokens
        chosen = decoder.prefill([answer])[0]
        stats.prefill = stats.first_token = clock() - started
        resumed, before = clock(), decoder.seconds
        while True:
            event = answer.take(chosen)
            if event.finish_reason:  # what was accepted beyond the end is forgotten
                decoder.truncate(0, len(answer.tokens) - 1)
            stats.draft, stats.target = (now - then for now, then in zip(decoder.seconds, before, strict=True))
            stats.host = clock() - resumed - stats.draft - stats.target
            paused = clock()
            yield event
            if event.finish_reason:
                return
            resumed += clock() - paused  # the caller's time is not ours
            chosen = decoder.round([answer])[0]

    def reset(self) -> None:
        """Forget the conversation."""
        self.tokens = []
        self._decoder.truncate(0, 0)

    def _reuse(self, ids: list[int]) -> int:
        """How many tokens of the prompt the caches hold already; the last one is always processed, for its logits."""
        common = 0
        for ours, theirs in zip(self.tokens, ids, strict=False):
            if ours != theirs:
                break
            common += 1
        # a draft row needs the token after its own: the last common token's row is made again
        return max(0, min(common - 1, self._decoder.held(0), len(ids) - 1))

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the conversation to a file (NumPy's .npz), from which `Engine.restore` continues it."""
        path = Path(file)
        self._decoder.truncate(0, max(0, len(self.tokens) - 1))
        arrays = {"tokens": np.array(self.tokens, np.int64), "engine": np.array(self.engine.fingerprint)}
        for name, call in (("target", self._decoder.target), ("draft", self._decoder.draft)):
            if call is not None:
                arrays[f"{name}_keys"], arrays[f"{name}_values"] = call.cache.export()
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as out:
                np.savez(out, **arrays)  # type: ignore[arg-type]
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def load(self, file: str | os.PathLike[str]) -> None:
        """Continue the conversation that `save` wrote.

        Raises:
            UsageError: there is no such file, or another engine wrote it
            EngineError: it is damaged
        """
        path = Path(file)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        except FileNotFoundError:
            raise UsageError(f"There is no saved session at {path}.") from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise EngineError(f"The saved session {path} is damaged ({error}).") from error
        if str(found.get("engine")) != self.engine.fingerprint:
            raise UsageError(f"The session {path} was not saved by this engine; restore it with the engine that wrote it.")
        self.reset()
        tokens, vocab = found.get("tokens"), self.engine.manifest.model.vocab_size
        calls = [("target", self._decoder.target), ("draft", self._decoder.draft)]
        try:
            assert tokens is not None
            assert tokens.dtype == np.int64
            assert tokens.ndim == 1
            assert not len(tokens) or (tokens.min() >= 0 and tokens.max() < vocab)
            for name, call in calls:
                # a session saved without speculation has no draft cache: its rows are made again
                if call is not None and (name == "target" or f"{name}_keys" in found):
                    assert found[f"{name}_keys"].shape[2] < max(1, len(tokens)) or not len(tokens)
                    assert call.cache.load(found[f"{name}_keys"], found[f"{name}_values"])
        except (AssertionError, KeyError) as error:
            self.reset()
            raise EngineError(f"The saved session {path} does not fit this engine; it is damaged.") from error
        self.tokens = tokens.tolist()
