"""Worker: the one thread that decodes, and the queues by which requests reach it and answers leave it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from jakiro_runtime.decoding.scheduler import Progress, Scheduler
from jakiro_runtime.decoding.sequence import TokenSequence
from jakiro_runtime.errors import UserError, one_line
from jakiro_serve.errors import RefusedError


class QueueFullError(Exception):
    """As many requests as are allowed run and wait already."""


@dataclass(eq=False)
class Ticket:
    """One answer of a request. index: which of its request's answers; chunks: where its progress goes, an error ends it."""

    sequence: TokenSequence
    index: int
    chunks: asyncio.Queue[tuple[int, Progress | Exception]]
    loop: asyncio.AbstractEventLoop

    def put(self, item: Progress | Exception) -> None:
        """Hand something to the event loop, from the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self.chunks.put_nowait, (self.index, item))


class Worker:
    """Runs a scheduler in a thread of its own.

    Args:
        most: answers that may run and wait together
    """

    def __init__(self, scheduler: Scheduler, most: int) -> None:
        self.scheduler, self._most = scheduler, most
        self._inbox: queue.SimpleQueue[tuple[str, Ticket | None]] = queue.SimpleQueue()
        self._live: set[Ticket] = set()  # the event loop's
        self._tickets: dict[int, Ticket] = {}  # the thread's
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present step; what still runs is dropped."""
        self._inbox.put(("stop", None))
        self._thread.join()

    def submit(self, sequences: Sequence[TokenSequence], seconds: float | None = None) -> Request:
        """Begin the answers of one request; call from the event loop.

        Args:
            seconds: what they may take in all; the iteration raises RefusedError then

        Raises:
            QueueFullError: there is no room for them
        """
        if len(self._live) + len(sequences) > self._most:
            raise QueueFullError
        chunks: asyncio.Queue[tuple[int, Progress | Exception]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        tickets = [Ticket(sequence, index, chunks, loop) for index, sequence in enumerate(sequences)]
        for ticket in tickets:
            self._live.add(ticket)
            self._inbox.put(("add", ticket))
        timer = None
        if seconds is not None:
            expired = RefusedError(504, f"The answer took longer than {seconds:g} seconds, the most it may here.", code="timeout")
            timer = loop.call_later(seconds, chunks.put_nowait, (0, expired))
        return Request(self, tickets, chunks, timer)

    def release(self, tickets: Sequence[Ticket]) -> None:
        """Forget answers, and cancel those that are not finished; call from the event loop."""
        for ticket in tickets:
            if ticket in self._live:
                self._live.discard(ticket)
                self._inbox.put(("cancel", ticket))

    def _run(self) -> None:
        while self._take_orders():
            try:
                progress = self.scheduler.step()
            except Exception as error:  # whatever it is, those who wait are told and the next requests are served
                known = error if isinstance(error, UserError) else RuntimeError(f"{type(error).__name__}: {one_line(error)}")
                for ticket in self._tickets.values():
                    ticket.put(known)
                self._tickets.clear()
                self.scheduler.reset()
                continue
            for each in progress:
                self._tickets[each.request].put(each.error or each)
                if each.ends:
                    del self._tickets[each.request]

    def _take_orders(self) -> bool:
        """Take what came in, waiting where there is nothing to decode. False at the end."""
        while True:
            try:
                order, ticket = self._inbox.get(block=not self._tickets)
            except queue.Empty:
                return True
            if ticket is None:
                return False
            if order == "add":
                self._tickets[self.scheduler.add(ticket.sequence)] = ticket
            else:
                for number in [number for number, each in self._tickets.items() if each is ticket]:
                    self.scheduler.cancel(number)
                    del self._tickets[number]


class Request:
    """The answers of one request while they come: iterate over (index, progress); leaving the context cancels what is left."""

    def __init__(
        self,
        worker: Worker,
        tickets: Sequence[Ticket],
        chunks: asyncio.Queue[tuple[int, Progress | Exception]],
        timer: asyncio.TimerHandle | None,
    ) -> None:
        self._worker, self._tickets, self._chunks, self._timer = worker, tickets, chunks, timer
        self._open = len(tickets)

    def __enter__(self) -> Request:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._worker.release(self._tickets)

    def __aiter__(self) -> Request:
        return self

    async def __anext__(self) -> tuple[int, Progress]:
        """What came next, and of which answer. Raises what the decoding raised."""
        if not self._open:
            raise StopAsyncIteration
        index, item = await self._chunks.get()
        if isinstance(item, Exception):
            raise item
        self._open -= item.chunk.finish_reason is not None
        return index, item
