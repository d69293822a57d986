"""Sessions: one conversation each, whose processed tokens the next prompt re-uses where it begins the same way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jakiro_runtime.bundle import Bundle
from jakiro_runtime.decoding.decoder import Decoder
from jakiro_runtime.decoding.kv_cache import KVCache
from jakiro_runtime.decoding.sequence import GenerationChunk, TokenSequence
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.errors import EngineError, UsageError
from jakiro_runtime.format.session_file import SavedSession
from jakiro_runtime.sampling import Sampling
from jakiro_runtime.sampling.grammar import Grammar


class Session:
    """One conversation: its caches, and the tokens they stand for. Not for several threads at once; open several sessions.

    Args:
        bundle: an opened engine's; use `Engine.session`
        speculate: False decodes with the target alone, in the same loop with an empty tree
        chunk: rows of a prompt that are processed in one call
        nodes: verify only the best `nodes` of every tree, no more than the engine drafts; None: as many as are worth their rows
        lookup: n-grams too: what followed the last tokens where they stood before, in the prompt or the answer, joins the trees

    tokens: what the caches stand for, and the one token that they do not hold yet
    stats: figures of the last answer
    """

    def __init__(
        self, bundle: Bundle, speculate: bool = True, chunk: int = 128, nodes: int | None = None, lookup: bool = True
    ) -> None:
        self.bundle = bundle
        self.stats = Stats()
        self.tokens: list[int] = []
        self._decoder = Decoder(bundle, 1, speculate, chunk, nodes, lookup)
        self._answers = 0  # begun so far: an older one that goes on would find the newer one's rows in the caches

    def generate(
        self,
        prompt: Sequence[int] | str,
        max_new_tokens: int = 512,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
    ) -> Iterator[GenerationChunk]:
        """Answer a prompt, a chunk a round. What the prompt shares with the conversation so far is not processed again.

        Leaving the iterator early cancels the answer; the session can go on from there.

        Args:
            prompt: token ids, or text as the model sees it (chat templates: `Engine.chat_prompt`)
            max_new_tokens: the most tokens of the answer
            sampling: how tokens are drawn; greedy by default
            stop: the answer ends where one of these strings appears, and does not hold it
            grammar: what the answer must look like

        Raises:
            UsageError: the prompt is empty, holds a number that is no token, or does not fit the context; or the session has
                begun another answer before this one was finished
        """
        decoder, clock = self._decoder, time.perf_counter
        sequence = TokenSequence(self.bundle, prompt, max_new_tokens, sampling, stop, grammar)
        self._answers += 1
        mine = self._answers
        stats = self.stats = sequence.stats
        started = clock()
        stats.reused_tokens = decoder.reuse(self.tokens, sequence.tokens)
        self.tokens = sequence.tokens
        gain = decoder.prefill([sequence])[0]
        stats.prefill = stats.first_token = clock() - started
        resumed, before = clock(), decoder.seconds
        while True:
            chunk = sequence.take(gain)
            if chunk.finish_reason:  # what was accepted beyond the end is forgotten
                decoder.truncate(0, len(sequence.tokens) - 1)
            stats.draft, stats.target = (now - then for now, then in zip(decoder.seconds, before, strict=True))
            stats.host = clock() - resumed - stats.draft - stats.target
            paused = clock()
            yield chunk
            if chunk.finish_reason:
                return
            if self._answers != mine:
                raise UsageError("This session has begun another answer; finish one before the next, or open two sessions.")
            resumed += clock() - paused  # the caller's time is not ours
            gain = decoder.round([sequence])[0]

    def reset(self) -> None:
        """Forget the conversation."""
        self._answers += 1
        self.tokens = []
        self._decoder.truncate(0, 0)

    def _caches(self) -> dict[str, KVCache]:
        draft = self._decoder.proposer.draft
        return {"target": self._decoder.target.cache, **({"draft": draft.cache} if draft else {})}

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the conversation to a file (NumPy's .npz), from which `Engine.restore` continues it."""
        self._decoder.truncate(0, max(0, len(self.tokens) - 1))
        caches = {name: cache.export() for name, cache in self._caches().items()}
        SavedSession(self.bundle.manifest.fingerprint, self.tokens, caches).write(Path(file))

    def load(self, file: str | os.PathLike[str]) -> None:
        """Continue the conversation that `save` wrote.

        Raises:
            UsageError: there is no such file, or another engine wrote it
            EngineError: it is damaged
        """
        manifest = self.bundle.manifest
        saved = SavedSession.read(Path(file), manifest.fingerprint, manifest.model.vocab_size)
        self.reset()
        try:
            for name, cache in self._caches().items():
                if name in saved.caches:  # without a draft cache its rows are made again
                    cache.load(*saved.caches[name])
        except ValueError as error:
            self.reset()
            raise EngineError(f"The saved session {file} does not fit this engine: {error}; it is damaged.") from error
        self.tokens = saved.tokens
