"""Where the time of a round goes that is spent outside the graphs."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jakiro_runtime
from jakiro_runtime.backends import Binding, Buffers, Graph, Memory
from jakiro_runtime.engine import Engine
from jakiro_runtime.session import Session

_SHOWN = 12
_READ = ("next_tokens", "tree_tokens", "tree_parents", "tree_scores")
_PACKAGE = Path(jakiro_runtime.__file__).parent


def host_profile(session: Session, prompt: Sequence[int], limit: int) -> dict[str, Any]:
    """Profile one answer after another one that warms up.

    The profiler makes every call dearer, by about half a microsecond: the shares are to be read, and the sum is an upper bound.

    Returns:
        rounds; us: microseconds a round outside the graphs; functions: the dearest ones, each with calls and us a round, its
        callees not counted
    """
    for _ in session.generate(prompt, limit):
        pass
    session.reset()
    profiler = cProfile.Profile()
    answer = session.generate(prompt, limit)
    next(answer)  # the prompt is not what is profiled
    profiler.enable()
    for _ in answer:
        pass
    profiler.disable()
    rounds = max(1, session.stats.rounds)
    functions = []
    for (file, _, name), (_, calls, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if "run_with_iobinding" not in name:
            functions.append(
                {"function": _label(file, name), "calls": round(calls / rounds, 2), "us": round(1e6 * own / rounds, 2)}
            )
    functions.sort(key=lambda entry: -entry["us"])
    return {"rounds": rounds, "us": round(sum(entry["us"] for entry in functions), 1), "functions": functions[:_SHOWN]}


class _Replay:
    """A graph that remembers what the loop reads of its outputs, and then gives that again without running."""

    def __init__(self, graph: Graph) -> None:
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.said: list[dict[str, np.ndarray]] = []
        self.next: int | None = None  # which of them comes next; None while the graph runs
        self._graph = graph

    def memory(self) -> Memory:
        return self._graph.memory()

    def bind(self, inputs: Buffers, outputs: Buffers) -> _Replayed:
        return _Replayed(self, self._graph.bind(inputs, outputs), outputs)


class _Replayed:
    def __init__(self, replay: _Replay, binding: Binding, outputs: Buffers) -> None:
        self._replay, self._binding = replay, binding
        self._read = {name: array for name, array in outputs.items() if name in _READ}

    def run(self) -> None:
        replay = self._replay
        if replay.next is None:
            self._binding.run()
            replay.said.append({name: array.copy() for name, array in self._read.items()})
            return
        for name, value in replay.said[replay.next].items():
            self._read[name][...] = value
        replay.next += 1


def host_alone(engine: Engine, prompt: Sequence[int], limit: int, nodes: int | None, lookup: bool, repeats: int = 7) -> float:
    """Microseconds a round of the loop alone: an answer given again with graphs that answer at once; the least of some tries.

    In a real round the same work takes longer, because the target has swept its weights through every cache.
    """
    target, draft = _Replay(engine.bundle.target), _Replay(engine.bundle.draft)
    replaying = Engine(engine.bundle.replace(target=target, draft=draft))
    session, best = replaying.session(nodes=nodes, lookup=lookup), float("inf")
    for repeat in range(repeats + 1):
        session.reset()
        for _ in session.generate(prompt, limit):
            pass
        for graph in (target, draft):
            graph.next = 0
        if repeat:
            best = min(best, 1e6 * session.stats.host / max(1, session.stats.rounds))
    return round(best, 1)


def _label(file: str, name: str) -> str:
    path = Path(file)
    if path.is_relative_to(_PACKAGE):
        return f"{path.relative_to(_PACKAGE).as_posix()}: {name}"
    return name if file == "~" else f"{path.name}: {name}"
