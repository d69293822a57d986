"""Throughput by batch size: requests through the scheduler, as a server decodes them, with speculation and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median
from typing import Any

from jakiro_runtime.decoding.scheduler import Scheduler
from jakiro_runtime.decoding.sequence import TokenSequence
from jakiro_runtime.engine import Engine

WAVES = 2
"""Requests for each place in a batch."""


@dataclass
class _Pass:
    """All requests decoded once. answers: tokens of each; nodes: verified in a round, of each request on average."""

    tokens_per_second: float
    nodes: float
    answers: list[list[int]]


def by_batch(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sizes: Sequence[int],
    limit: int,
    repeats: int,
    nodes: int | None = None,
    lookup: bool = True,
    progress: Callable[[int], None] = lambda requests: None,
) -> list[dict[str, Any]]:
    """Tokens a second of each batch size, prompts included; the two ways of decoding take turns.

    Args:
        prompts: token ids; taken in turn until there are enough requests
        sizes: requests that are decoded together
        limit: the most tokens of an answer
        progress: called with the number of requests just answered

    Returns:
        for each size `batch`, `tokens_per_second`, `plain_tokens_per_second`, `ratio` (the median over repeats), `nodes`
        verified a round for each request, and whether all answers were `identical`
    """
    found = []
    for size in sizes:
        asked = list(islice(cycle(prompts), WAVES * size))
        ways: dict[bool, list[_Pass]] = {True: [], False: []}
        for repeat in range(repeats):
            for speculate in (True, False) if repeat % 2 == 0 else (False, True):
                ways[speculate].append(_decode(engine, asked, size, limit, speculate, nodes, lookup))
                progress(len(asked))
        ratios = [ours.tokens_per_second / plain.tokens_per_second for ours, plain in zip(ways[True], ways[False], strict=True)]
        answers = [each.answers for each in (*ways[True], *ways[False])]
        found.append({
            "batch": size,
            "tokens_per_second": median(each.tokens_per_second for each in ways[True]),
            "plain_tokens_per_second": median(each.tokens_per_second for each in ways[False]),
            "ratio": median(ratios),
            "nodes": median(each.nodes for each in ways[True]),
            "identical": all(each == answers[0] for each in answers),
        })  # fmt: skip
    return found


def _decode(
    engine: Engine, prompts: Sequence[Sequence[int]], size: int, limit: int, speculate: bool, nodes: int | None, lookup: bool
) -> _Pass:
    scheduler = Scheduler(engine.bundle, speculate, nodes=nodes, lookup=lookup, most_running=size, most_kept=0)
    sequences = [TokenSequence(engine.bundle, ids, limit) for ids in prompts]
    started = time.perf_counter()
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.waiting or scheduler.running:
        scheduler.step()
    seconds = time.perf_counter() - started
    answers = [sequence.tokens[len(ids) :] for sequence, ids in zip(sequences, prompts, strict=True)]
    rounds = max(1, sum(sequence.stats.rounds for sequence in sequences))
    return _Pass(sum(map(len, answers)) / seconds, sum(sequence.stats.verified for sequence in sequences) / rounds, answers)
