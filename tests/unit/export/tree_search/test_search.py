"""--tree auto: its reckoning is what decoding does, and it chooses what is the fastest by its own figures."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tiny
from jakiro_export.cli.export import main
from jakiro_export.heads.config import TreeShape
from jakiro_export.tree_search import search as choose
from jakiro_export.tree_search import simulate, texts
from jakiro_export.tree_search.search import Given, Search
from jakiro_export.tree_search.trees import Grown, Phase, accepted, engine_phase, grow, torch_phase
from jakiro_export.verification.draft import load_draft
from jakiro_runtime import Engine
from jakiro_runtime.format.manifest import Manifest
from jakiro_runtime.format.tree_plan import TreePlan
from jakiro_runtime.profiling import machine


@pytest.fixture(scope="module")
def engine(tiny_engine: Path) -> Engine:
    return Engine.open(tiny_engine)


@pytest.fixture(scope="module")
def calibration(engine: Engine) -> list[texts.Text]:
    return texts.answers(engine, 8, 48)


def make_plan(row_ms: float = 0.5, draft_ms: float = 2.0) -> TreePlan:
    """A target that costs 10 ms and so much a row."""
    costs = [10 + row_ms * rows for rows in choose.ROWS]
    return TreePlan(list(choose.ROWS), {"256": costs}, draft_ms, [-8.0, 0.0], [0.0, 1.0], {"tokens_per_second": 100.0})


def test_calibration_texts_are_what_the_target_says(engine: Engine, calibration: list[texts.Text]) -> None:
    assert len(calibration) >= 6
    for text in calibration[:2]:
        prompt = text.tokens[: text.first].tolist()
        said = [token for event in engine.session(speculate=False).generate(prompt, 48) for token in event.tokens]
        assert text.tokens[text.first :].tolist() == said
        assert text.features.shape == (len(text.tokens), 48)


@pytest.mark.parametrize("nodes", [3, 12])
def test_the_reckoning_is_what_decoding_does(engine: Engine, calibration: list[texts.Text], nodes: int) -> None:
    """Round by round: the same number of nodes accepted as by a session, in every answer."""
    phase, hits = engine_phase(engine), 0
    for text in calibration:
        grown, session = grow(phase, text), engine.session(nodes=nodes, lookup=False)
        sizes = [len(event.tokens) for event in session.generate(text.tokens[: text.first].tolist(), 48)][1:]
        place, reckoned = 0, []
        while place < len(grown.ranks):
            taken = sum(rank < nodes for rank in grown.ranks[place])
            reckoned.append(taken + 1)
            place += taken + 1
        assert reckoned == sizes[: len(reckoned)]
        hits += sum(reckoned) - len(reckoned)
        outcome = simulate.fixed([grown], make_plan(), nodes)
        assert (outcome.rounds, outcome.tokens) == (len(reckoned), sum(reckoned))
    assert hits > 0, "nothing was ever accepted, so nothing was compared"


def test_torch_and_the_engine_grow_the_same_trees(
    engine: Engine, calibration: list[texts.Text], tiny_target: Path, tiny_head: Path
) -> None:
    module = load_draft(tiny.draft_plan(tiny_target, tiny_head, TreeShape(3, 4, 12)))
    ours, theirs = grow(torch_phase(module, 2, 8, 4), calibration[0]), grow(engine_phase(engine), calibration[0])
    assert np.abs(ours.scores - theirs.scores).max() < 1e-3
    assert ours.ranks == theirs.ranks


def test_a_path_is_followed_as_far_as_the_target_goes() -> None:
    tokens, parents = np.array([5, 6, 7, 8]), np.array([0, 0, 1, 3])
    assert accepted(tokens, parents, np.array([5, 7, 8, 9])) == [0, 2, 3]
    assert accepted(tokens, parents, np.array([6, 7])) == [1]
    assert accepted(tokens, parents, np.array([9])) == []


def synthetic(seed: int, places: int = 400, nodes: int = 31) -> Grown:
    """Chains whose nodes are accepted as often as their scores say, at places that are easy or hard."""
    random = np.random.default_rng(seed)
    steps = np.where(random.random(places)[:, None] < 0.5, 0.9, 0.3) * np.ones((places, nodes))
    scores = np.log(steps).cumsum(1)
    lengths = (random.random((places, nodes)) < steps).cumprod(1).sum(1)
    return Grown(scores, [list(range(length)) for length in lengths])


def test_choosing_round_by_round_beats_every_fixed_number() -> None:
    grown, plan = [synthetic(seed) for seed in range(4)], make_plan()
    best = max(simulate.fixed(grown, plan, nodes).rate for nodes in (1, 2, 3, 4, 5, 6, 7, 9, 11, 15))
    plan = simulate.calibrated(grown, simulate.with_rate(plan, best), 9)
    plan, outcome = simulate.settled(grown, plan, 31)
    assert outcome.rate > 1.05 * best
    # a control: with chances that say nothing, the choice is a fixed number of nodes and gains nothing
    blind = replace(plan, acceptance=[0.3] * len(plan.acceptance))
    assert simulate.settled(grown, blind, 31)[1].rate < 1.01 * best


def test_chances_are_counted_and_never_fall() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(-6, 0, 60_000)
    hits = (random.random(len(scores)) < 0.5 * np.exp(scores)).astype(float)
    found = simulate.chances(scores, hits)
    assert (np.diff(found) >= 0).all()
    assert np.interp([-2.0, -1.0, -0.3], simulate._LOG_PROBS, found) == pytest.approx(0.5 * np.exp([-2.0, -1.0, -0.3]), abs=0.03)
    assert simulate.monotone(np.array([1.0, 3.0, 1.0, 4.0]), np.array([1.0, 1.0, 3.0, 1.0])).tolist() == [1.0, 1.5, 1.5, 4.0]


def searched(monkeypatch: pytest.MonkeyPatch, row_ms: float, measured: dict[tuple[int, int], float], given: Given) -> TreeShape:
    """The shape that a search prefers where every level of depth adds a node that is mostly accepted."""

    def deep(phase: Phase, text: object) -> Grown:
        random = np.random.default_rng(3)
        lengths = np.minimum((random.random((300, 12)) < 0.9).cumprod(1).sum(1), phase.levels)
        scores = np.broadcast_to(np.log(0.9) * np.arange(1, 32), (300, 31))
        return Grown(scores, [list(range(length)) for length in lengths])

    monkeypatch.setattr(choose, "grow", deep)
    phase = Phase(lambda inputs: inputs, 2, 8, 0)
    search = Search([None], make_plan(row_ms), lambda s: phase._replace(levels=s.depth + 1), given, TreeShape(), 8)  # type: ignore[list-item]
    search.measured.update(measured)
    return search.smallest(search.best()[0].shape)


def test_the_search_takes_deep_trees_where_drafting_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    free = Given(None, None, None)
    assert searched(monkeypatch, 0.01, {(2, 4): 0.01}, free).depth == 6
    assert searched(monkeypatch, 0.01, {(2, 4): 40.0}, free).depth <= 2
    cheap_rows, dear_rows = (searched(monkeypatch, ms, {(2, 4): 0.5}, free).nodes for ms in (0.01, 3.0))
    assert cheap_rows > dear_rows
    assert searched(monkeypatch, 0.01, {(2, 4): 0.01}, Given(3, 2, 4)) == TreeShape(3, 2, 4)


@pytest.mark.slow
def test_an_export_chooses_and_says_so(tmp_path: Path, tiny_target: Path, tiny_head: Path) -> None:
    """One whole export, its depth and top_k given to keep it short."""
    out = tiny.make_engine(tmp_path / "engine", tiny_target, tiny_head, depth=1, top_k=3, nodes=None, verify=False, tree="auto")
    manifest = Manifest.read(out)
    plan, draft = manifest.tree, manifest.draft
    assert plan is not None
    assert (draft.depth, draft.top_k) == (1, 3)
    assert plan.shape == {"depth": 1, "top_k": 3, "nodes": draft.nodes}
    assert plan.considered[0]["tokens_per_second"] > 0
    assert plan.expected["speedup"] == pytest.approx(
        plan.expected["tokens_per_second"] / plan.expected["plain_tokens_per_second"], rel=1e-3
    )
    assert plan.measured["tokens"] > 300
    assert plan.result["speedup"] == pytest.approx(
        plan.result["tokens_per_second"] / plan.result["plain_tokens_per_second"], rel=1e-3
    )
    # the trees were known beforehand, so the finished engine accepts as many tokens as was reckoned
    assert plan.result["tau"] == pytest.approx(plan.expected["tau"], rel=0.25)
    session = Engine.open(out).session(lookup=False)
    tokens = [token for event in session.generate([5, 6, 7], 20) for token in event.tokens]
    assert len(tokens) == 20
    assert session.stats.verified < draft.nodes * session.stats.rounds or draft.nodes == 1
    shutil.rmtree(out)


def test_a_busy_machine_is_noticed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(make_plan(1.0), shape={"depth": 1, "top_k": 2, "nodes": 3})
    plan.expected.update(tau=2.0, speedup=1.5, nodes_per_round=3.0)
    assert "quiet" not in replace(plan, measured={"others": 0.02}).summary()
    assert "30 %" in replace(plan, measured={"others": 0.3}).summary()
    seconds = iter([(100.0, 50.0, 5.0), (120.0, 66.0, 11.0)])  # of 20 seconds 16 were busy, 6 of them ours
    monkeypatch.setattr(machine, "_processor_seconds", lambda: next(seconds))
    assert machine.Others().share() == 0.5


def test_measuring_for_a_gpu_on_a_cpu_is_refused(tmp_path: Path) -> None:
    arguments = ["-t", "x", "-d", "y", "-o", str(tmp_path / "out"), "--tree", "auto", "--precision", "fp16"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--tree auto measures on this machine's CPU" in result.stderr
