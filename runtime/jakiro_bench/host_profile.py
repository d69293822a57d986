"""Host time of a decoding round: what is spent outside the graphs, function by function."""

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

    The profiler adds about half a microsecond to every call: read the shares, and take the sum for an upper bound.

    Returns:
        rounds; us: microseconds a round outside the graphs; functions: the slowest ones, each with calls and us a round, its
        callees not counted
    """
    for _ in session.generate(prompt, limit):
        pass
    session.reset()
    profiler = cProfile.Profile()
    answer = session.generate(prompt, limit)
    next(answer)  # the prompt is not profiled
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


class ReplayGraph:
    """A graph that records the outputs that the loop reads, and then gives them again without running."""

    def __init__(self, graph: Graph) -> None:
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.recorded: list[dict[str, np.ndarray]] = []
        self.next: int | None = None  # the next one to give; None while recording
        self._graph = graph

    def memory(self) -> Memory:
        return self._graph.memory()

    def bind(self, inputs: Buffers, outputs: Buffers) -> _ReplayBinding:
        return _ReplayBinding(self, self._graph.bind(inputs, outputs), outputs)


class _ReplayBinding:
    def __init__(self, replay: ReplayGraph, binding: Binding, outputs: Buffers) -> None:
        self._replay, self._binding = replay, binding
        self._read = {name: array for name, array in outputs.items() if name in _READ}

    def run(self) -> None:
        replay = self._replay
        if replay.next is None:
            self._binding.run()
            replay.recorded.append({name: array.copy() for name, array in self._read.items()})
            return
        for name, value in replay.recorded[replay.next].items():
            self._read[name][...] = value
        replay.next += 1


def replayed_host_us(
    engine: Engine, prompt: Sequence[int], limit: int, nodes: int | None, lookup: bool, repeats: int = 7
) -> float:
    """Host microseconds of a round without graphs: an answer decoded again with recorded outputs; the min over repeats.

    In a real round the same work takes longer, because the target has swept its weights through every cache.
    """
    target, draft = ReplayGraph(engine.bundle.target), ReplayGraph(engine.bundle.draft)
    session, best = Engine(engine.bundle.replace(target=target, draft=draft)).session(nodes=nodes, lookup=lookup), float("inf")
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
