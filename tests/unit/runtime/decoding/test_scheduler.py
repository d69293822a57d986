"""Continuous batching: each request's answer is the one it would have alone, whenever it comes and whoever else is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from answers import plain
from jakiro_runtime import Engine, Sampling, UsageError
from jakiro_runtime.decoding.scheduler import Scheduler
from jakiro_runtime.decoding.sequence import GenerationResult, TokenSequence
from oracle import with_oracle

HOW = [None, Sampling(temperature=0.8, seed=4), Sampling(repetition_penalty=1.3, logprobs=2)]


def step(scheduler: Scheduler, results: dict[int, GenerationResult]) -> None:
    for request, chunk, *_ in scheduler.step():
        results.setdefault(request, GenerationResult()).add(chunk)


def drain(scheduler: Scheduler, results: dict[int, GenerationResult]) -> None:
    while scheduler.waiting or scheduler.running:
        step(scheduler, results)


@pytest.mark.parametrize("speculate", [True, False])
def test_requests_that_come_and_go_answer_as_each_alone(engine: Engine, prompts: list[list[int]], speculate: bool) -> None:
    alone = [plain(engine, prompt, 10 + 5 * n, sampling=HOW[n % 3]) for n, prompt in enumerate(prompts)]
    expert = with_oracle(engine, [[*p, *a.tokens] for p, a in zip(prompts, alone, strict=True)])
    scheduler = Scheduler(expert.bundle, speculate, chunk=37, most_running=3, most_kept=2)
    results: dict[int, GenerationResult] = {}
    order, most = [], 0
    for number, prompt in enumerate(prompts):
        order.append(scheduler.add(TokenSequence(expert.bundle, prompt, 10 + 5 * number, HOW[number % 3])))
        for _ in range(3):
            step(scheduler, results)
            most = max(most, scheduler.running)
    drain(scheduler, results)
    assert 1 < most <= 4, "they were in one batch, and no more than allowed"
    for request, theirs in zip(order, alone, strict=True):
        ours = results[request]
        assert (ours.tokens, ours.text, ours.finish_reason) == (theirs.tokens, theirs.text, theirs.finish_reason)
        assert ours.logprobs == theirs.logprobs


def test_a_cancelled_request_ends_and_the_others_do_not_notice(engine: Engine, prompts: list[list[int]]) -> None:
    scheduler = Scheduler(engine.bundle, chunk=50, most_running=3)
    numbers = [scheduler.add(TokenSequence(engine.bundle, prompt, 40)) for prompt in prompts[:5]]
    results: dict[int, GenerationResult] = {}
    for _ in range(5):
        step(scheduler, results)
    before = len(results[numbers[0]].tokens)
    scheduler.cancel(numbers[0])  # runs
    scheduler.cancel(numbers[4])  # waits
    drain(scheduler, results)
    assert len(results[numbers[0]].tokens) == before < 40
    assert numbers[4] not in results
    for number, prompt in zip(numbers[1:4], prompts[1:4], strict=True):
        assert results[number].tokens == plain(engine, prompt).tokens


def test_a_long_prompt_does_not_stop_the_others(engine: Engine, prompts: list[list[int]]) -> None:
    scheduler = Scheduler(engine.bundle, speculate=False, chunk=20)
    first = scheduler.add(TokenSequence(engine.bundle, prompts[1], 60))
    scheduler.step()
    second = scheduler.add(TokenSequence(engine.bundle, prompts[7], 5))  # 300 tokens: 15 calls
    steps = [{request for request, *_ in scheduler.step()} for _ in range(15)]
    assert all(first in step for step in steps), "a round after every call"
    assert [second in step for step in steps] == [False] * 14 + [True]


def test_a_finished_request_s_rows_serve_the_next_prompt(engine: Engine, prompts: list[list[int]]) -> None:
    scheduler = Scheduler(engine.bundle, most_kept=2)
    results: dict[int, GenerationResult] = {}
    first = scheduler.add(TokenSequence(engine.bundle, prompts[5], 12))
    drain(scheduler, results)
    again = [*prompts[5], *results[first].tokens, 7, 8]
    sequences = [TokenSequence(engine.bundle, again, 12), TokenSequence(engine.bundle, prompts[5], 12)]
    numbers = [scheduler.add(sequence) for sequence in sequences]
    drain(scheduler, results)
    assert sequences[0].stats.reused_tokens >= len(prompts[5]) - 1
    assert sequences[1].stats.reused_tokens >= len(prompts[5]) - 2
    assert results[numbers[0]].tokens == plain(engine, again).tokens[:12]
    assert results[numbers[1]].tokens == results[first].tokens


@pytest.mark.parametrize("when", [0, 3])
def test_a_request_whose_rules_fail_ends_alone(engine: Engine, prompts: list[list[int]], when: int) -> None:
    def fails(prefix: Sequence[int], scores: np.ndarray) -> np.ndarray:
        return scores[:3] if len(prefix) == len(prompts[2]) + when else scores

    scheduler, errors = Scheduler(engine.bundle), {}
    hows = [Sampling(repetition_penalty=1.3), None, Sampling(processors=[fails])]
    numbers = [scheduler.add(TokenSequence(engine.bundle, prompts[n], 30, how)) for n, how in enumerate(hows)]
    results: dict[int, GenerationResult] = {number: GenerationResult() for number in numbers}
    while scheduler.waiting or scheduler.running:
        for progress in scheduler.step():
            results[progress.request].add(progress.chunk)
            if progress.error:
                errors[progress.request] = str(progress.error)
    assert list(errors) == numbers[2:]
    assert "expected (320,)" in errors[numbers[2]]
    for number, prompt, how in zip(numbers[:2], prompts, hows, strict=False):
        assert results[number].tokens == plain(engine, prompt, 30, sampling=how).tokens
    with pytest.raises(UsageError, match="expected"):
        plain(engine, prompts[2], 30, sampling=hows[2])
