"""The worker: a step that fails is told to those who wait, and the next request is served."""

from __future__ import annotations

import asyncio

import pytest

from answers import plain
from jakiro_runtime import Engine, EngineError
from jakiro_runtime.decoding.scheduler import Progress, Scheduler
from jakiro_runtime.decoding.sequence import TokenSequence
from jakiro_serve.worker import QueueFullError, Worker


def test_a_step_that_fails_is_told_and_the_next_request_is_served(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, honest, failures = Scheduler(engine.bundle), Scheduler.step, [EngineError("no memory"), ValueError("a bug")]

    def step(self: Scheduler) -> list[Progress]:
        if self.running and failures:
            raise failures.pop(0)
        return honest(self)

    monkeypatch.setattr(Scheduler, "step", step)
    worker = Worker(scheduler, 2)

    async def ask() -> list[int]:
        with worker.submit([TokenSequence(engine.bundle, [5, 6, 7], 12)]) as live:
            return [token for _, progress in [each async for each in live] for token in progress.chunk.tokens]

    async def all_of_it() -> list[int]:
        with pytest.raises(EngineError, match="no memory"):
            await ask()
        with pytest.raises(RuntimeError, match="ValueError: a bug"):
            await ask()
        return await ask()

    worker.start()
    try:
        assert asyncio.run(all_of_it()) == plain(engine, [5, 6, 7], 12).tokens
    finally:
        worker.stop()
    assert not worker.alive


def test_no_more_wait_than_are_allowed(engine: Engine) -> None:
    worker = Worker(Scheduler(engine.bundle), 2)  # not started: nothing ends

    async def ask() -> None:
        def one() -> list[TokenSequence]:
            return [TokenSequence(engine.bundle, [5, 6, 7], 12)]

        with worker.submit(one()), worker.submit(one()), pytest.raises(QueueFullError):
            worker.submit(one())
        with worker.submit([*one(), *one()]):
            pass

    asyncio.run(ask())
