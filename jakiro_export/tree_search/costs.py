"""Measured costs: target passes, the draft phase and the host on this machine, and what decoding really comes to.

A machine is rarely equally fast from one second to the next: processor clocks, memory that is backed by small pages at first, and
neighbours on a shared host change it by up to a factor of two, without any of it showing in the load. What decides between trees
are ratios of costs. So every cost is measured in turns with a reference, a target pass of two rows, and kept as a multiple of it;
and `Decoding` is compared with what was expected, since a machine may change in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from jakiro_export.tree_search.shapes import ROWS
from jakiro_export.tree_search.simulate import Outcome, isotonic
from jakiro_export.tree_search.texts import Text
from jakiro_runtime.decoding.draft_runner import DraftRunner
from jakiro_runtime.decoding.stats import Stats
from jakiro_runtime.engine import Engine
from jakiro_runtime.format.tree_plan import TreePlan
from jakiro_runtime.profiling.cost import TimedPass, pass_times

_PASTS = (64, 900)  # caches of 256 and 1024 slots
_REFERENCE_ROWS = 2  # one row alone is padded to two
_TOLERANCE = 0.15  # of rates: expected and measured ones that differ by less agree


def warm_up(engine: Engine, seconds: float = 3.0) -> None:
    """Run target passes until they take the same time, within 5 %, or `seconds` are over."""
    reference, deadline = TimedPass(engine, _PASTS[0], _REFERENCE_ROWS), time.monotonic() + seconds
    before, now = 0.0, _median_ms(reference)
    while abs(now - before) > 0.05 * now and time.monotonic() < deadline:
        before, now = now, _median_ms(reference)


def pass_ms(engine: Engine) -> float:
    """Milliseconds of a pass of two rows, roughly: before anything is measured, to know how much can be."""
    reference = TimedPass(engine, _PASTS[0], _REFERENCE_ROWS)
    return min(reference.milliseconds(_REFERENCE_ROWS) for _ in range(4))


def _median_ms(reference: TimedPass) -> float:
    return median(reference.milliseconds(_REFERENCE_ROWS) for _ in range(20))


def target_costs(engine: Engine, sweeps: int) -> TreePlan:
    """Target passes by rows and capacity, each measured `sweeps` times.

    Returns:
        a plan without a draft: nothing is known of acceptance yet
    """
    room = engine.manifest.model.max_context - max(ROWS)
    pasts = [past for past in _PASTS if past <= room] or [max(1, room)]
    times = pass_times(engine, sweeps, ROWS, pasts)
    table = typical_sweep(np.concatenate([*times.values()], axis=1)).reshape(len(times), len(ROWS))
    # a pass of more rows is never cheaper: what looks so is noise, and would be acted on
    target = {
        str(each.capacity): isotonic(values, np.ones(len(ROWS))).round(3).tolist()
        for each, values in zip(times, table, strict=True)
    }
    return TreePlan(list(ROWS), target, 0.0, [-1.0], [0.0], {"tokens_per_second": 0.0})


def typical_sweep(times: np.ndarray) -> np.ndarray:
    """Milliseconds of each pass, [passes], of sweeps over all of them, [sweeps, passes].

    Sweeps are brought to the median sweep's total first, so that one in which the machine was slow says as much as the others
    about how the passes compare.
    """
    totals = times.sum(1, keepdims=True)
    return np.asarray(np.median(times / totals, 0) * np.median(totals))


def reference_ms(plan: TreePlan) -> float:
    """The reference pass as the plan has it."""
    return plan.milliseconds(_REFERENCE_ROWS, plan.capacities[0])


def draft_cost(engine: Engine, repeats: int = 21) -> float:
    """The draft phase after two accepted rows, as most rounds find it, in reference passes.

    A reference pass goes before each: in a round the target has just put its own weights where the draft's were, in every cache.
    """
    draft, reference = DraftRunner(engine.bundle.draft, engine.manifest), TimedPass(engine, _PASTS[0], _REFERENCE_ROWS)
    passes, drafts = [], []
    for _ in range(repeats):
        passes.append(reference.milliseconds(_REFERENCE_ROWS))
        draft.cache.truncate(0, 64)
        draft.features.lengths[:] = 0
        assert reference.features is not None
        draft.append_features(reference.features, [[0, 1]])
        started = time.perf_counter()
        draft.run([[5, 6]], [0], engine.manifest.draft.levels + 1)
        drafts.append(1e3 * (time.perf_counter() - started))
    return median(drafts) / median(passes)


def host_cost(engine: Engine, text: Text, repeats: int = 3) -> float:
    """A round outside the graphs, as an answer finds it, in reference passes: the median of some answers."""
    found = []
    for stats, plain in _decode(engine, [text] * (repeats + 1), 24):
        found.append((stats.host / max(1, stats.rounds)) / (plain.target / max(1, plain.rounds)))
    return median(found[1:])  # the first answer allocates


class Decoding(NamedTuple):
    """What decoding comes to, plain and with the head alone: the keys of `TreePlan.expected` and `TreePlan.result`."""

    tau: float
    tokens_per_second: float
    plain_tokens_per_second: float

    @property
    def speedup(self) -> float:
        return self.tokens_per_second / self.plain_tokens_per_second

    def agrees(self, other: Decoding) -> bool:
        """Whether both have the same rates, as far as measurements repeat."""
        ratios = (self.speedup / other.speedup, self.plain_tokens_per_second / other.plain_tokens_per_second)
        return all(abs(math.log(ratio)) < _TOLERANCE for ratio in ratios)

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in (*self._asdict().items(), ("speedup", self.speedup))}


def expected_decoding(plan: TreePlan, outcome: Outcome) -> Decoding:
    """What a simulated decoding comes to."""
    return Decoding(outcome.tau, outcome.rate, 1e3 / (reference_ms(plan) + plan.host_ms))


def measured_decoding(engine: Engine, texts: Sequence[Text]) -> Decoding:
    """Decode the texts, plain and with the head alone, in turns."""
    done = _decode(engine, [texts[0], *texts], None)[1:]  # the first one warms up
    head, plain = zip(*done, strict=True)
    emitted, rounds = sum(each.new_tokens - 1 for each in head), sum(each.rounds for each in head)
    return Decoding(emitted / max(1, rounds), _rate(head), _rate(plain))


def _rate(stats: Sequence[Stats]) -> float:
    """Tokens per second: the harmonic kind of median, since times are what is disturbed."""
    return 1 / median(1 / each.tokens_per_second for each in stats)


def _decode(engine: Engine, texts: Sequence[Text], limit: int | None) -> list[tuple[Stats, Stats]]:
    """Statistics of each text's answer, with the head alone and plain."""
    sessions = [engine.session(speculate=speculate, lookup=False) for speculate in (True, False)]
    found = []
    for text in texts:
        for session in sessions:
            session.reset()
            for _ in session.generate(text.tokens[: text.first].tolist(), limit or len(text.tokens) - text.first):
                pass
        found.append((sessions[0].stats, sessions[1].stats))
    return found
