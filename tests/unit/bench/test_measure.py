"""The measuring loop."""

from __future__ import annotations

from collections.abc import Sequence

from jakiro_bench.measure import measure
from jakiro_bench.prompts import Prompt
from jakiro_bench.runners import TimedAnswer


class Recorder:
    """Answers with its name, and notes what it was asked when."""

    def __init__(self, name: str, log: list[tuple[str, tuple[int, ...]]]) -> None:
        self.name, self.log = name, log

    def answer(self, prompt: Sequence[int], limit: int) -> TimedAnswer:
        self.log.append((self.name, tuple(prompt)))
        return TimedAnswer([1, 2], f"({self.name})", 1.0, 1.0)

    def reset(self) -> None:
        self.log.append((self.name, ()))


def test_all_see_the_same_tokens_and_take_turns_at_going_first() -> None:
    log: list[tuple[str, tuple[int, ...]]] = []
    said: list[tuple[list[str], list[str]]] = []

    def render(turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        said.append((list(turns), list(answers)))
        return list(range(len(turns)))

    both = [Recorder("a", log), Recorder("b", log)]
    run = measure(both, [Prompt("p", ("one", "two"))], render, 2, 8, 100, "b")
    first, second = (0,), (0, 1)
    asked = [[("a", ()), ("b", ()), ("a", first), ("b", first), ("b", second), ("a", second)]] * 2
    assert log == [entry for repeat in asked for entry in repeat]
    assert said == [(["one"], []), (["one", "two"], ["(b)"])]
    assert [len(turn.answers["a"]) for turn in run.turns] == [2, 2]
