"""The tree that decodes fastest on this machine: acceptance from eager torch, milliseconds from the graphs that were written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from jakiro_export.errors import ExportError
from jakiro_export.heads.model import DraftTree
from jakiro_export.tree_search.costs import (
    draft_cost,
    expected_decoding,
    host_cost,
    measured_decoding,
    pass_ms,
    reference_ms,
    target_costs,
    warm_up,
)
from jakiro_export.tree_search.search import Candidate, Search, fixed_paths, shape_of
from jakiro_export.tree_search.shapes import TreeConstraints
from jakiro_export.tree_search.texts import Text, calibration_texts
from jakiro_export.tree_search.traces import DraftCall, engine_draft, trace
from jakiro_runtime.engine import Engine
from jakiro_runtime.format.tree_plan import TreePlan
from jakiro_runtime.profiling import machine

_ANSWERS, _NEW_TOKENS, _SWEEPS = 16, 56, 9
_LEAST_ANSWERS, _LEAST_TOKENS, _LEAST_SWEEPS = 3, 24, 3
_THOROUGH_MS = 30.0  # a pass of two rows that takes longer leaves time for less: a large target is to be measured in minutes
_WRITES = 2  # draft graphs written next to the first one while searching


def choose_tree(
    write: Callable[[DraftTree], Engine],
    eager: Callable[[DraftTree], DraftCall],
    start: DraftTree,
    constraints: TreeConstraints,
    max_top_k: int,
) -> tuple[DraftTree, TreePlan]:
    """Find the fastest tree, and leave its draft graph written.

    Decoding with it is compared with what was expected; where they disagree, the plan says so: then the machine's speed changed
    between the two, and the choice rests on costs of another moment.

    Args:
        write: writes the draft graph with a tree and opens the engine
        eager: the draft phase with a tree in torch
        start: a tree to begin with; where it is not searchable, only its number of nodes is chosen, round by round
        max_top_k: the number of tokens that the head may propose

    Raises:
        ExportError: the target says next to nothing
    """
    other_load = machine.OtherLoad()
    engine = write(start)
    effort = Effort.of(pass_ms(engine))
    texts = calibration_texts(engine, effort.answers, effort.new_tokens)
    if not texts:
        raise ExportError(
            "The target answers the calibration prompts with next to nothing; give the tree with --depth and --nodes."
        )
    chooser = _Chooser(write, engine, start, texts, eager, constraints, max_top_k, effort)
    stable = chooser.attempt()
    measured = {
        "answers": len(texts),
        "tokens": sum(len(text.tokens) - text.first for text in texts),
        "others": other_load.share(),
        "stable": stable,
    }
    return chooser.tree, replace(chooser.plan, measured=measured)


class Effort(NamedTuple):
    """How much is measured."""

    answers: int
    new_tokens: int
    sweeps: int

    @property
    def answers_for_host(self) -> int:
        """Answers in which the host's time is measured."""
        return 3 if self.sweeps == _SWEEPS else 1

    @staticmethod
    def of(milliseconds: float) -> Effort:
        """For a target whose passes of two rows take so long."""
        share = min(1.0, _THOROUGH_MS / milliseconds)
        return Effort(
            max(_LEAST_ANSWERS, round(_ANSWERS * share)),
            max(_LEAST_TOKENS, round(_NEW_TOKENS * share)),
            max(_LEAST_SWEEPS, round(_SWEEPS * share)),
        )


class _Chooser:
    """One search.

    tree, plan: what was chosen; its draft graph is the one that is written
    """

    def __init__(
        self,
        write: Callable[[DraftTree], Engine],
        engine: Engine,
        start: DraftTree,
        texts: Sequence[Text],
        eager: Callable[[DraftTree], DraftCall],
        constraints: TreeConstraints,
        max_top_k: int,
        effort: Effort,
    ) -> None:
        self._effort = effort
        self.tree, self._engine = start, engine
        self._write, self._texts = write, texts
        self._search = Search(texts, eager, constraints, start, max_top_k)
        self.plan = self._search.plan

    def attempt(self) -> bool:
        """Measure, choose, and decode with the choice; whether that comes to what was expected."""
        warm_up(self._engine)
        costs = target_costs(self._engine, self._effort.sweeps)
        self._search.plan = replace(
            costs, host_ms=round(host_cost(self._engine, self._texts[0], self._effort.answers_for_host) * reference_ms(costs), 3)
        )
        considered = self._choose() if self.tree.searchable else []
        draft = engine_draft(self._engine)
        traces = [trace(draft, text) for text in self._texts]
        found = self._search.candidate(self.tree, traces, draft_cost(self._engine))
        expected = expected_decoding(found.plan, found.outcome)
        planned = Engine(self._engine.bundle.replace(manifest=replace(self._engine.manifest, tree=found.plan)))
        result = measured_decoding(planned, self._texts)
        rounds = max(1, found.outcome.rounds)
        self.plan = replace(
            found.plan,
            expected={
                **expected.as_dict(),
                "round_ms": round(found.outcome.time / rounds, 4),
                "nodes_per_round": round(found.outcome.nodes / rounds, 4),
            },
            considered=[each.as_dict() for each in considered],
            shape=shape_of(self.tree),
            result=result.as_dict(),
        )
        return result.agrees(expected)

    def _choose(self) -> list[Candidate]:
        """Search, timing the draft phases of the most promising trees; the best one is written. What was considered."""
        search = self._search
        search.note(self.tree, draft_cost(self._engine))
        for _ in range(_WRITES):
            best = search.ranking()[0].tree
            if search.knows(best):
                break
            self._time(search.smallest(best))
        considered, fixed = search.ranking(), search.best_static()
        if fixed is not None and fixed.outcome.rate > search.best_measured().outcome.rate:
            self._time(fixed.tree)
            fixed = search.evaluate(fixed.tree)
        self._open(search.smallest(search.best_measured().tree))
        return sorted([*considered, *([fixed] if fixed else [])], key=lambda each: -each.outcome.rate)

    def _time(self, tree: DraftTree) -> None:
        self._open(tree)
        self._search.note(tree, draft_cost(self._engine))

    def _open(self, tree: DraftTree) -> None:
        if (shape_of(tree), fixed_paths(tree)) != (shape_of(self.tree), fixed_paths(self.tree)):
            self._engine, self.tree = self._write(tree), tree
