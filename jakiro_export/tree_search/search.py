"""The search for the fastest tree: acceptance from eager torch, milliseconds from the graphs that were written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from jakiro_export.errors import ExportError
from jakiro_export.heads.config import TreeShape
from jakiro_export.tree_search import simulate
from jakiro_export.tree_search.texts import Text, answers
from jakiro_export.tree_search.trees import Grown, Phase, engine_phase, grow
from jakiro_runtime.decoding.draft_runner import DraftRunner
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.decoding.target_runner import TargetRunner
from jakiro_runtime.engine import Engine
from jakiro_runtime.format.tree_plan import TreePlan
from jakiro_runtime.profiling import machine
from jakiro_runtime.profiling.cost import cost_by_rows

ROWS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
_PASTS = (64, 900)  # caches of 256 and 1024 slots
_DEPTHS, _TOP_KS = (1, 2, 3, 4, 5, 6), (2, 3, 4, 6, 8)
_ANSWERS, _NEW_TOKENS = 16, 56
_TRACES = 2  # draft graphs written besides the first one while searching
_ENOUGH = 0.995  # of the best rate: the smallest tree that reaches it is taken


class Given(NamedTuple):
    """What the user fixed; None is for the search."""

    depth: int | None
    top_k: int | None
    nodes: int | None


@dataclass(frozen=True)
class Found:
    """A shape and what it is expected to come to."""

    shape: TreeShape
    plan: TreePlan
    outcome: simulate.Outcome

    def as_dict(self) -> dict[str, Any]:
        done = self.outcome
        return {
            **{name: getattr(self.shape, name) for name in ("depth", "top_k", "nodes")},
            "draft_ms": round(self.plan.draft_ms, 3),
            "tau": round(done.tau, 4),
            "tokens_per_second": round(done.rate, 2),
        }


def target_costs(engine: Engine) -> TreePlan:
    """Time target passes. A plan without a draft: nothing is known of acceptance yet."""
    room = engine.manifest.model.max_context - max(ROWS)
    pasts = [past for past in _PASTS if past <= room] or [max(1, room)]
    table = cost_by_rows(engine, 9, ROWS, pasts)
    # a pass of more rows is never cheaper: what looks so is noise, and would be acted on
    target = {
        str(entry["capacity"]): [round(float(ms), 3) for ms in _never_falling([each["median"] for each in entry["ms"].values()])]
        for entry in table
    }
    return TreePlan(list(ROWS), target, 0.0, [-1.0], [0.0], {"tokens_per_second": 0.0})


def _never_falling(values: Sequence[float]) -> np.ndarray:
    return simulate.monotone(np.array(values), np.ones(len(values)))


def draft_cost(engine: Engine, repeats: int = 21) -> float:
    """Milliseconds of the draft phase behind two accepted rows, as most rounds find it; the median.

    A target pass goes before each: in a round it has just put its own weights where the draft's were, in every cache.
    """
    draft, one = engine.manifest.draft, np.ones((1, 2), np.int64)
    call, target = DraftRunner(engine.bundle.draft, engine.manifest), TargetRunner(engine.bundle.target, engine.manifest)
    times = []
    for _ in range(repeats):
        output = target.run(one, np.arange(2)[None], np.tri(2, dtype=bool)[None], logits=False)
        call.cache.truncate(0, 64)
        call.features.lengths[:] = 0
        call.append_features(output.features, [[0, 1]])
        started = time.perf_counter()
        call.run([[5, 6]], [0], draft.levels + 1)
        times.append(1e3 * (time.perf_counter() - started))
    return float(median(times))


def choose(
    write: Callable[[TreeShape], Engine],
    eager: Callable[[TreeShape], Phase],
    start: TreeShape,
    given: Given,
    most_top_k: int,
    fixed: bool,
) -> tuple[TreeShape, TreePlan]:
    """Find the fastest tree, and leave its draft graph written.

    Args:
        write: writes the draft graph of a shape and opens the engine
        eager: the draft phase of a shape in torch
        start: a shape to begin with
        most_top_k: the tokens that the head may propose
        fixed: the head has a tree of its own; only the number of nodes is chosen, round by round
    """
    others = machine.Others()
    engine = write(start)
    texts = answers(engine, _ANSWERS, _NEW_TOKENS)
    if not texts:
        raise ExportError(
            "The target answers the calibration prompts with next to nothing; give the tree with --depth and --nodes."
        )
    plan = replace(target_costs(engine), host_ms=host_cost(engine, texts[0]))
    search = Search(texts, plan, eager, given, start, most_top_k)
    written = start
    search.measured[start.depth, start.top_k] = draft_cost(engine)
    for _ in range(0 if fixed else _TRACES):
        best = search.best()[0].shape
        if (best.depth, best.top_k) in search.measured:
            break
        written = search.smallest(best)
        engine = write(written)
        search.measured[best.depth, best.top_k] = draft_cost(engine)
    considered = [] if fixed else search.best()
    if not fixed and (shape := search.smallest(search.best_measured()[0].shape)) != written:
        engine, written = write(shape), shape
    phase = engine_phase(engine)
    grown = [grow(phase, text) for text in texts]
    found = search.found(written, grown, draft_cost(engine))
    plan = replace(
        found.plan,
        expected=expected(found.plan, found.outcome),
        considered=[each.as_dict() for each in considered],
        shape={"depth": written.depth, "top_k": written.top_k, "nodes": written.nodes},
        result=reached(Engine(engine.bundle.replace(manifest=replace(engine.manifest, tree=found.plan))), texts),
        measured={
            "answers": len(texts),
            "tokens": sum(len(text.tokens) - text.first for text in texts),
            "others": others.share(),
        },
    )
    return written, plan


def reached(engine: Engine, texts: Sequence[Text]) -> dict[str, float]:
    """What decoding the texts comes to, plain and with the head alone, in turns: figures of `TreePlan.result`."""
    sessions = {speculate: engine.session(speculate=speculate, lookup=False) for speculate in (False, True)}
    done: dict[bool, list[Stats]] = {speculate: [] for speculate in sessions}
    for number, text in enumerate([texts[0], *texts]):  # the first one warms up
        for speculate, session in sessions.items():
            session.reset()
            for _ in session.generate(text.tokens[: text.first].tolist(), len(text.tokens) - text.first):
                pass
            if number:
                done[speculate].append(session.stats)
    plain, rate = (1 / median(1 / each.tokens_per_second for each in done[speculate]) for speculate in sessions)
    rounds = sum(each.rounds for each in done[True])
    figures = {
        "tau": sum(sum(each.accepted) + each.rounds for each in done[True]) / max(1, rounds),
        "tokens_per_second": rate,
        "plain_tokens_per_second": plain,
        "speedup": rate / plain,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def host_cost(engine: Engine, text: Text) -> float:
    """Milliseconds of a round outside the graphs, as an answer finds it."""
    session = engine.session(lookup=False)
    for _ in range(2):
        session.reset()
        for _ in session.generate(text.tokens[: text.first].tolist(), 24):
            pass
    return round(1e3 * session.stats.host / max(1, session.stats.rounds), 3)


class Search:
    """Coordinate search over depth and top_k; nodes follow from them.

    Args:
        plan: of `target_costs`
        eager: the draft phase of a shape, in torch
        like: a shape with everything that is not searched
        most_top_k: the tokens that the head may propose
    """

    def __init__(
        self,
        texts: Sequence[Text],
        plan: TreePlan,
        eager: Callable[[TreeShape], Phase],
        given: Given,
        like: TreeShape,
        most_top_k: int,
    ) -> None:
        self.texts, self.plan, self.given = texts, plan, given
        self.measured: dict[tuple[int, int], float] = {}  # milliseconds of draft phases, by depth and top_k
        self._eager, self._like = eager, like
        self._depths = [given.depth] if given.depth else list(_DEPTHS)
        self._top_ks = [given.top_k] if given.top_k else [k for k in _TOP_KS if k <= most_top_k] or [most_top_k]
        self._grown: dict[tuple[int, int], list[Grown]] = {}

    def best(self) -> list[Found]:
        """What was considered, by what is known so far, best first."""
        found: dict[tuple[int, int], Found] = {}

        def along(places: Sequence[tuple[int, int]]) -> tuple[int, int]:
            """Walk along a line of shapes, in order, until it leads downhill; the best shape so far."""
            rates: list[float] = []
            for place in places:
                if place not in found:
                    found[place] = self._evaluate(*place)
                rates.append(found[place].outcome.rate)
                if len(rates) > 2 and rates[-1] < rates[-2] < rates[-3]:
                    break
            shape = max(found.values(), key=lambda each: each.outcome.rate).shape
            return shape.depth, shape.top_k

        place = along([(depth, self._top_ks[len(self._top_ks) // 2]) for depth in self._depths])
        while True:
            before = place
            place = along([(place[0], top_k) for top_k in self._top_ks])
            place = along([(depth, place[1]) for depth in self._depths if abs(depth - place[0]) <= 1])
            if place == before:
                return sorted(found.values(), key=lambda each: -each.outcome.rate)

    def best_measured(self) -> list[Found]:
        """The shapes whose draft graph was timed, best first."""
        return sorted((self._evaluate(*place) for place in self.measured), key=lambda each: -each.outcome.rate)

    def _evaluate(self, depth: int, top_k: int) -> Found:
        shape = widest(depth, top_k, self.given, self._like)
        if (depth, top_k) not in self._grown:
            phase = self._eager(shape)
            self._grown[depth, top_k] = [grow(phase, text) for text in self.texts]
        return self.found(shape, self._grown[depth, top_k], self._draft_ms(depth, top_k))

    def found(self, shape: TreeShape, grown: Sequence[Grown], draft_ms: float) -> Found:
        """The expectation of a shape, by its trees."""
        plan = replace(self.plan, draft_ms=round(draft_ms, 3))
        fixed = {nodes: simulate.fixed(grown, plan, nodes) for nodes in _counts(shape)}
        likely = max(fixed, key=lambda nodes: fixed[nodes].rate)
        plan = simulate.calibrated(grown, simulate.with_rate(plan, fixed[likely].rate), likely)
        return Found(shape, *simulate.settled(grown, plan, shape.nodes))

    def smallest(self, shape: TreeShape) -> TreeShape:
        """The shape with no more nodes than help, where the user did not say how many."""
        found = self._evaluate(shape.depth, shape.top_k)
        if self.given.nodes is not None:
            return found.shape
        grown = self._grown[shape.depth, shape.top_k]
        rates = ((nodes, simulate.chosen(grown, found.plan, nodes).rate) for nodes in _counts(found.shape))
        return replace(shape, nodes=next(nodes for nodes, rate in rates if rate >= _ENOUGH * found.outcome.rate))

    def _draft_ms(self, depth: int, top_k: int) -> float:
        """Milliseconds of a draft phase: measured, or from those that were, by how many rows it passes how often."""
        if (depth, top_k) in self.measured:
            return self.measured[depth, top_k]
        points = [(self._work(*place), ms) for place, ms in self.measured.items()]
        work, ms = np.array(points).T
        if len(set(work)) > 1:
            slope, base = np.polyfit(work, ms, 1)
            if slope > 0 and base > 0:
                return float(base + slope * self._work(depth, top_k))
        return float((ms / work).mean() * self._work(depth, top_k))

    def _work(self, depth: int, top_k: int) -> float:
        """Target passes of as many rows, in milliseconds: one row, then top_k rows depth - 1 times."""
        capacity = self.plan.capacities[0]
        return self.plan.milliseconds(2, capacity) + (depth - 1) * self.plan.milliseconds(max(2, top_k), capacity)


def _counts(shape: TreeShape) -> list[int]:
    """Numbers of nodes that were timed, up to the shape's."""
    return [rows - 1 for rows in ROWS if rows <= shape.nodes] + [shape.nodes]


def widest(depth: int, top_k: int, given: Given, like: TreeShape) -> TreeShape:
    """The largest tree of this depth and top_k that may be worth verifying on a CPU, or the nodes that the user gave."""
    shape = replace(like, depth=depth, top_k=top_k, nodes=given.nodes or max(ROWS) - 1)
    return replace(shape, nodes=min(shape.nodes, shape.candidates))


def expected(plan: TreePlan, done: simulate.Outcome) -> dict[str, float]:
    """The figures of `TreePlan.expected`."""
    plain = 1e3 / (plan.milliseconds(2, plan.capacities[0]) + plan.host_ms)
    figures = {
        "tau": done.tau,
        "tokens_per_second": done.rate,
        "plain_tokens_per_second": plain,
        "speedup": done.rate / plain,
        "round_ms": done.time / max(1, done.rounds),
        "nodes_per_round": done.nodes / max(1, done.rounds),
    }
    return {name: round(value, 4) for name, value in figures.items()}
