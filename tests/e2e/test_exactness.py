"""Bit for bit: logits along the accepted path are those of plain decoding, whatever the tree, chunk, batch or threads."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest

import tiny
from answers import plain, run
from jakiro_runtime import Engine, Sampling
from oracle import with_oracle


class Recorder:
    """A logits processor that changes nothing and remembers everything it saw."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __call__(self, prefix: list[int], scores: np.ndarray) -> np.ndarray:
        self.seen.append(scores.copy())
        return scores


def recorded(
    engine: Engine, prompt: list[int], most: int, speculate: bool = True, **options: object
) -> tuple[list[int], np.ndarray]:
    recorder = Recorder()
    sampling = Sampling(temperature=0.9, seed=11, processors=(recorder,))
    result = run(engine.session(speculate=speculate, **options), prompt, most, sampling=sampling)
    return result.tokens, np.stack(recorder.seen[: len(result.tokens)])


@pytest.mark.parametrize("length", [1, 60, 254, 500, 900])
def test_logits_are_the_same_to_the_last_bit(engine: Engine, tiny_engine: Path, length: int) -> None:
    assert engine.manifest.bitwise
    prompt = np.random.default_rng(length).integers(3, tiny.VOCAB, length).tolist()
    tokens, logits = recorded(engine, prompt, 30, speculate=False)
    for seed, (nodes, chunk, threads) in enumerate([(None, 128, 1), (7, 33, 2), (3, 2, 1), (1, 300, 3)]):
        other = Engine.open(tiny_engine, threads=threads)
        found, theirs = recorded(with_oracle(other, [[*prompt, *tokens]], seed), prompt, 30, nodes=nodes, chunk=chunk)
        assert found == tokens
        assert np.array_equal(theirs, logits)


def test_a_last_bit_would_be_noticed(tiny_numerical: Path) -> None:
    """A control: without exact sums, some logit of some prompt differs in its last bits."""
    numerical = Engine.open(tiny_numerical)
    for seed in range(6):
        prompt = np.random.default_rng(seed).integers(3, tiny.VOCAB, 60).tolist()
        tokens, logits = recorded(numerical, prompt, 30, speculate=False)
        found, theirs = recorded(with_oracle(numerical, [[*prompt, *tokens]], seed), prompt, 30, chunk=33)
        if found != tokens or not np.array_equal(theirs, logits):
            return
    pytest.fail("numerical engines agree to the last bit, so the test above proves nothing")


@pytest.mark.slow
@pytest.mark.parametrize("most", [2_500, pytest.param(20_000, marks=pytest.mark.exhaustive)])
def test_thousands_of_rounds_leak_nothing(tiny_engine: Path, engine: Engine, most: int) -> None:
    """Answers, answers left early, new sessions and engines opened again: memory stays flat and every answer is right."""
    process = psutil.Process()
    random = np.random.default_rng(1)
    asked = [random.integers(3, tiny.VOCAB, int(n)).tolist() for n in random.integers(1, 400, 6)]
    expected = [plain(engine, prompt, 60).tokens for prompt in asked]
    truths = [[*p, *a] for p, a in zip(asked, expected, strict=True)]
    rounds, sizes, target = 0, [], with_oracle(engine, truths)
    session = target.session()
    while rounds < most:
        number = int(random.integers(0, len(asked)))
        leave = int(random.integers(1, 30)) if random.random() < 0.4 else None
        tokens: list[int] = []
        for count, event in enumerate(session.generate(asked[number], 60), 1):
            tokens += event.tokens
            if count == leave:
                break
        rounds += session.stats.rounds + 1
        assert tokens == expected[number][: len(tokens)]
        assert leave or len(tokens) == len(expected[number])
        if random.random() < 0.02:
            session = target.session(nodes=int(random.integers(1, 12)))
        if random.random() < 0.004:
            target = with_oracle(Engine.open(tiny_engine), truths, seed=rounds)
            session = target.session()
        if len(sizes) < 20 * rounds // most:
            gc.collect()
            sizes.append(process.memory_info().rss)
    settled = sizes[len(sizes) // 4 :]
    assert max(settled) - min(settled[:3]) < 48 * 2**20, [size >> 20 for size in sizes]
