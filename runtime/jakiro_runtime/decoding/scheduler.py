"""Continuous batching: requests join and leave a running batch between its rounds."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from jakiro_runtime.bundle import Bundle
from jakiro_runtime.decoding.decoder import Decoder, shared_prefix
from jakiro_runtime.decoding.sequence import Gain, GenerationChunk, TokenSequence
from jakiro_runtime.errors import UserError


class Progress(NamedTuple):
    """What a step brought one request, by the number that `Scheduler.add` gave.

    gain: the round, with its tree
    error: what ended the request, in place of a finish reason
    """

    request: int
    chunk: GenerationChunk
    gain: Gain
    error: UserError | None = None

    @property
    def ends(self) -> bool:
        """Whether nothing more comes."""
        return self.error is not None or self.chunk.finish_reason is not None


class _Prefill(NamedTuple):
    """A request whose prompt is being processed, in a decoder of its own."""

    request: int
    sequence: TokenSequence
    decoder: Decoder
    calls: Iterator[list[Gain]]


class Scheduler:
    """Requests that are decoded in one batch, each as if it were alone. Not for several threads at once.

    A prompt is processed in calls of `chunk` rows, one between two rounds of the batch, and joins the batch when it is done. The
    keys and values of finished requests are kept for prompts that begin the same way.

    Args:
        speculate, chunk, nodes, lookup: as `Session` takes them
        most_running: requests in the batch at most; the others wait in their order
        most_kept: finished requests whose keys and values are kept, those used last
    """

    def __init__(
        self,
        bundle: Bundle,
        speculate: bool = True,
        chunk: int = 128,
        nodes: int | None = None,
        lookup: bool = True,
        most_running: int = 8,
        most_kept: int = 4,
    ) -> None:
        self._bundle, self._options = bundle, (speculate, chunk, nodes, lookup)
        self._memory = bundle.target.memory()
        self._most_running, self._most_kept = most_running, most_kept
        self._numbers = count()
        self._waiting: deque[tuple[int, TokenSequence]] = deque()
        self._prefill: _Prefill | None = None
        self._active: list[tuple[int, TokenSequence]] = []  # the request in each row of the batch
        self._batch: Decoder | None = None
        self._kept: OrderedDict[int, tuple[list[int], Decoder]] = OrderedDict()
        self._added: dict[int, float] = {}

    @property
    def waiting(self) -> int:
        """Requests whose prompts are not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are begun and not finished."""
        return len(self._active) + (self._prefill is not None)

    def add(self, sequence: TokenSequence) -> int:
        """Take a request; the number that its progress has."""
        number = next(self._numbers)
        self._waiting.append((number, sequence))
        self._added[number] = time.perf_counter()
        return number

    def cancel(self, request: int) -> None:
        """Drop a request, wherever it stands; one that is finished or unknown is no error."""
        self._added.pop(request, None)
        self._waiting = deque(each for each in self._waiting if each[0] != request)
        if self._prefill is not None and self._prefill.request == request:
            self._prefill = None
        self._leave({row for row, (number, _) in enumerate(self._active) if number == request})

    def step(self) -> list[Progress]:
        """One call for a prompt that waits, then one round of the batch; what each request gained. Empty without requests.

        Raises:
            EngineError: the backend failed; `reset` before going on
        """
        return [*self._step_prefill(), *self._step_batch()]

    def reset(self) -> None:
        """Drop every request and everything kept."""
        self._waiting.clear()
        self._prefill, self._batch, self._active = None, None, []
        self._kept.clear()
        self._added.clear()

    def _decoder(self) -> Decoder:
        return Decoder(self._bundle, 1, *self._options, memory=self._memory)

    def _step_prefill(self) -> list[Progress]:
        if self._prefill is None:
            if not self._waiting or len(self._active) >= self._most_running:
                return []
            request, sequence = self._waiting.popleft()
            decoder = self._begun(sequence)
            self._prefill = _Prefill(request, sequence, decoder, decoder.prefill_calls([sequence]))
        request, sequence, decoder, calls = self._prefill
        gains = next(calls)
        if not gains:
            decoder.proposer.catch_up([sequence])  # in its turn: else the whole prompt would be drafted after in one round
            return []
        self._prefill = None
        progress = _taken(request, sequence, gains[0])
        sequence.stats.prefill = sequence.stats.first_token = time.perf_counter() - self._added.pop(request)
        if progress.ends:
            self._keep(sequence, decoder, 0)
        elif self._batch is None:
            self._batch, self._active = decoder, [(request, sequence)]
        else:
            self._batch.admit(decoder)
            self._active.append((request, sequence))
        return [progress]

    def _step_batch(self) -> list[Progress]:
        decoder = self._batch
        if decoder is None:
            return []
        started, before = time.perf_counter(), decoder.seconds
        gains = decoder.round([sequence for _, sequence in self._active])
        progress = [_taken(request, sequence, gain) for (request, sequence), gain in zip(self._active, gains, strict=True)]
        draft, target = (now - then for now, then in zip(decoder.seconds, before, strict=True))
        host = time.perf_counter() - started - draft - target
        for _, sequence in self._active:  # times are the whole batch's
            sequence.stats.draft += draft
            sequence.stats.target += target
            sequence.stats.host += host
        self._leave({row for row, (_, sequence) in enumerate(self._active) if sequence.finish_reason})
        return progress

    def _leave(self, rows: set[int]) -> None:
        """Take these rows out of the batch."""
        if not rows or self._batch is None:
            return
        for row in sorted(rows):
            self._keep(self._active[row][1], self._batch, row)
        staying = [row for row in range(len(self._active)) if row not in rows]
        self._active = [self._active[row] for row in staying]
        if staying:
            self._batch.select(staying)
        else:
            self._batch = None

    def _begun(self, sequence: TokenSequence) -> Decoder:
        """A decoder for a new request; its caches hold what the prompt shares with a finished one."""
        decoder = self._decoder()
        shared = {key: shared_prefix(known, sequence.tokens) for key, (known, _) in self._kept.items()}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is not None and shared[best] > 1:
            known, kept = self._kept[best]
            self._kept.move_to_end(best)
            decoder.assemble([(kept, 0)])
            sequence.stats.reused_tokens = decoder.reuse(known, sequence.tokens)
        return decoder

    def _keep(self, sequence: TokenSequence, decoder: Decoder, row: int) -> None:
        if not self._most_kept:
            return
        kept = self._decoder()
        kept.assemble([(decoder, row)])
        kept.truncate(0, len(sequence.tokens) - 1)  # what was accepted beyond the end is forgotten
        self._kept[next(self._numbers)] = (list(sequence.tokens), kept)
        if len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)


def _taken(request: int, sequence: TokenSequence, gain: Gain) -> Progress:
    """What a sequence takes of a round. One whose rules fail ends alone."""
    try:
        return Progress(request, sequence.take(gain), gain)
    except UserError as error:
        return Progress(request, GenerationChunk([], ""), gain, error)
