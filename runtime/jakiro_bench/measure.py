"""Measuring loop: every turn of every prompt to every runner, in one process, each going first in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jakiro_bench.prompts import Prompt
from jakiro_bench.runners import Runner, TimedAnswer
from jakiro_runtime.engine import Engine

Render = Callable[[Sequence[str], Sequence[str]], list[int]]
"""Token ids of a conversation: the turns asked so far, and the answers to all but the last."""


@dataclass
class Turn:
    """One question of a conversation, and the answers to it: a list by repeat, for each runner."""

    prompt: Prompt
    number: int
    ids: list[int]
    answers: dict[str, list[TimedAnswer]] = field(default_factory=dict)


@dataclass
class Run:
    """All answers that were measured.

    skipped: (prompt id, turn number) of the turns that do not fit the engine's context; later turns of it are skipped too
    """

    turns: list[Turn] = field(default_factory=list)
    skipped: list[tuple[str, int]] = field(default_factory=list)


def conversation(engine: Engine, raw: bool) -> Render:
    """How turns become token ids: through the model's chat template, or as they stand, a line each."""

    def chat(turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        messages = [{"role": "user", "content": turns[0]}]
        for answer, turn in zip(answers, turns[1:], strict=True):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
        return engine.chat_prompt(messages)

    def plain(turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        parts = [turns[0]]
        for answer, turn in zip(answers, turns[1:], strict=True):
            parts += [answer, turn]
        return engine.encode("\n".join(parts))

    return plain if raw else chat


def measure(
    runners: Sequence[Runner],
    prompts: Sequence[Prompt],
    render: Render,
    repeats: int,
    limit: int,
    room: int,
    reference: str,
    progress: Callable[[int], None] = lambda answers: None,
) -> Run:
    """Ask everything, `repeats` times.

    All runners are given the same token ids: a conversation goes on with what `reference` answered in the first repeat.

    Args:
        limit: the most tokens of an answer
        room: the most tokens of prompt and answer together
        reference: the name of a runner
        progress: called with the number of answers just made
    """
    run, order = Run(), 0
    for repeat in range(repeats):
        for prompt in prompts:
            for runner in runners:
                runner.reset()
            turns = [turn for turn in run.turns if turn.prompt is prompt]
            for number, _ in enumerate(prompt.turns):
                if repeat == 0:
                    previous = [turn.answers[reference][0].text for turn in turns]
                    ids = render(prompt.turns[: number + 1], previous)
                    if len(ids) + limit > room:
                        run.skipped.append((prompt.id, number + 1))
                        break
                    turns.append(Turn(prompt, number + 1, ids))
                    run.turns.append(turns[-1])
                elif number >= len(turns):
                    break
                first = order % len(runners)
                for runner in [*runners[first:], *runners[:first]]:
                    turns[number].answers.setdefault(runner.name, []).append(runner.answer(turns[number].ids, limit))
                    progress(1)
                order += 1
    return run
