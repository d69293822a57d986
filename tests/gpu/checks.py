"""What whole engines on a GPU are compared with: the tiers call it there, the unit tests on a GPU made of host memory.

Each check returns figures for the report and raises AssertionError where the contract is broken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jakiro_runtime import Engine, Sampling

# Where two backends disagree about the best token, the reference must have held the two this close, in log-probability.
NEAR_TIE = 0.1


@dataclass(frozen=True)
class Answers:
    """The reference: ONNX Runtime's greedy answers on the CPU.

    prompts: token ids; tokens: of each answer; best: for each of those the two best tokens, [(id, log-probability), ...]
    """

    prompts: list[list[int]]
    tokens: list[list[int]]
    best: list[list[list[tuple[int, float]]]]

    @staticmethod
    def of(reference: Engine, prompts: Sequence[Sequence[int]], most: int = 48) -> Answers:
        """What an engine answers."""
        tokens, best = [], []
        for prompt in prompts:
            found, logprobs, _ = answer(reference, prompt, most, False, Sampling(logprobs=2))
            tokens.append(found)
            best.append([[(int(token), float(value)) for token, value in entry.top] for entry in logprobs])
        return Answers([list(map(int, prompt)) for prompt in prompts], tokens, best)

    @staticmethod
    def read(file: Path) -> Answers:
        return Answers(**json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def agree(self, number: int, found: Sequence[int]) -> int | None:
        """Compare greedy tokens with an answer; the place of a near tie at which they part, None where they do not.

        Raises:
            AssertionError: they part where the reference was sure
        """
        tokens = self.tokens[number]
        for place, (wanted, got) in enumerate(zip(tokens, found, strict=False)):
            if wanted != got:
                (first, best), (second, other) = self.best[number][place]
                tied = got in (first, second) and best - other <= NEAR_TIE
                assert tied, f"token {place} is {got} where {wanted} was expected, and that is no near tie: {best - other:.3f}"
                return place
        assert len(tokens) == len(found)
        return None


def answer(engine: Engine, prompt: Sequence[int], most: int, speculate: bool, sampling: Sampling | None = None) -> Any:
    """(tokens, log-probabilities, statistics) of an answer."""
    session = engine.session(speculate=speculate, chunk=32)
    events = list(session.generate(prompt, most, sampling))
    tokens = [token for event in events for token in event.tokens]
    return tokens, [entry for event in events for entry in event.logprobs or []], session.stats


def tokens(directory: Path, answers: Answers, backend: str, plugin: Path | None = None) -> dict[str, Any]:
    """The reference's answers, with speculation and without, but for near ties."""
    engine = Engine.open(directory, backend, plugin=plugin)
    parted, same = [], 0
    rounds = gained = 0
    for number, prompt in enumerate(answers.prompts):
        most = len(answers.tokens[number])
        plain, _, _ = answer(engine, prompt, most, False)
        speculative, _, stats = answer(engine, prompt, most, True)
        parted += [place for found in (plain, speculative) if (place := answers.agree(number, found)) is not None]
        same += plain == speculative
        rounds, gained = rounds + stats.rounds, gained + stats.new_tokens - 1
    count = len(answers.prompts)
    return {"answers": count, "plain equals speculative": same, "near ties": len(parted), "tau": gained / max(1, rounds)}


def seeds(directory: Path, backend: str, prompt: Sequence[int], most: int = 32) -> dict[str, Any]:
    """A seed gives the same tokens again, and mostly the same with speculation."""
    engine, how = Engine.open(directory, backend), Sampling(temperature=0.8, top_p=0.95, seed=11)
    first, again, plain = (answer(engine, prompt, most, speculate, how)[0] for speculate in (True, True, False))
    assert first == again, "a seed drew other tokens the second time"
    common = next((n for n, (a, b) in enumerate(zip(first, plain, strict=False)) if a != b), len(first))
    return {"tokens": len(first), "equal to plain decoding up to": common}


def recorded(directory: Path, backend: str, prompt: Sequence[int]) -> dict[str, Any]:
    """Rounds run as CUDA graphs."""
    session = Engine.open(directory, backend).session(chunk=32)
    for _ in session.generate(prompt, 16):
        pass
    decoder = session._decoder
    assert decoder.proposer.draft is not None
    found = {}
    for name, runner in (("target", decoder.target), ("draft", decoder.proposer.draft)):
        found[name] = [bound._binding._recording is not None for bound in runner._bound.values()]  # type: ignore[attr-defined]
        assert any(found[name]), f"no call of the {name} was recorded"
    return {name: f"{sum(flags)} of {len(flags)} shapes" for name, flags in found.items()}


def speed(directory: Path, backend: str, prompt: Sequence[int], most: int = 128, plugin: Path | None = None) -> dict[str, Any]:
    """Tokens a second after the prompt, the second of two answers; and where the time goes, in ms a round."""
    engine, figures = Engine.open(directory, backend, plugin=plugin), dict[str, Any]()
    for name, speculate in (("plain", False), ("speculative", True)):
        for _ in range(2):
            _, _, stats = answer(engine, prompt, most, speculate)
        spent, rounds = stats.draft + stats.target + stats.host, max(1, stats.rounds)
        figures[f"{name} tokens/s"] = round((stats.new_tokens - 1) / spent, 1)
        figures[f"{name} ms a round"] = {
            part: round(1e3 * getattr(stats, part) / rounds, 3) for part in ("draft", "target", "host")
        }
        figures[f"{name} ms to the first token"] = round(1e3 * stats.first_token, 1)
    return figures
