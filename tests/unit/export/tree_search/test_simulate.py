"""Offline decoding: round by round what a session does; acceptance by score."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jakiro_export.tree_search import simulate
from jakiro_export.tree_search.texts import Text
from jakiro_export.tree_search.traces import DraftTrace, engine_draft, trace
from jakiro_runtime import Engine
from row_plans import row_plan


@pytest.mark.parametrize("nodes", [3, 12])
def test_offline_decoding_is_what_decoding_does(engine: Engine, calibration: list[Text], nodes: int) -> None:
    """Round by round: the same number of nodes accepted as by a session, in every answer."""
    draft, hits = engine_draft(engine), 0
    for text in calibration:
        found, session = trace(draft, text), engine.session(nodes=nodes, lookup=False)
        sizes = [len(chunk.tokens) for chunk in session.generate(text.tokens[: text.first].tolist(), 48)][1:]
        position, simulated = 0, []
        while position < len(found.ranks):
            taken = sum(rank < nodes for rank in found.ranks[position])
            simulated.append(taken + 1)
            position += taken + 1
        assert simulated == sizes[: len(simulated)]
        hits += sum(simulated) - len(simulated)
        outcome = simulate.decode_fixed([found], row_plan(), nodes)
        assert (outcome.rounds, outcome.tokens) == (len(simulated), sum(simulated))
    assert hits > 0, "nothing was ever accepted, so nothing was compared"


def synthetic(seed: int, places: int = 400, nodes: int = 31) -> DraftTrace:
    """Chains whose nodes are accepted as often as their scores say, at places that are easy or hard."""
    random = np.random.default_rng(seed)
    steps = np.where(random.random(places)[:, None] < 0.5, 0.9, 0.3) * np.ones((places, nodes))
    scores = np.log(steps).cumsum(1)
    lengths = (random.random((places, nodes)) < steps).cumprod(1).sum(1)
    nodes = [list(range(length)) for length in lengths]
    return DraftTrace(scores, nodes)


def test_choosing_round_by_round_beats_every_fixed_number() -> None:
    traces, plan = [synthetic(seed) for seed in range(4)], row_plan()
    best = max(simulate.decode_fixed(traces, plan, nodes).rate for nodes in (1, 2, 3, 4, 5, 6, 7, 9, 11, 15))
    plan = simulate.with_acceptance(traces, simulate.with_rate(plan, best), 9)
    plan, outcome = simulate.fixed_point(traces, plan, 31)
    assert outcome.rate > 1.05 * best
    # a control: with chances that say nothing, the choice is a fixed number of nodes and gains nothing
    blind = replace(plan, acceptance=[0.3] * len(plan.acceptance))
    assert simulate.fixed_point(traces, blind, 31)[1].rate < 1.01 * best


def test_chances_are_counted_and_never_fall() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(-6, 0, 60_000)
    hits = (random.random(len(scores)) < 0.5 * np.exp(scores)).astype(float)
    found = simulate.acceptance_by_score(scores, hits)
    assert (np.diff(found) >= 0).all()
    assert np.interp([-2.0, -1.0, -0.3], simulate._LOG_PROBS, found) == pytest.approx(0.5 * np.exp([-2.0, -1.0, -0.3]), abs=0.03)
    assert simulate.isotonic(np.array([1.0, 3.0, 1.0, 4.0]), np.array([1.0, 1.0, 3.0, 1.0])).tolist() == [1.0, 1.5, 1.5, 4.0]
