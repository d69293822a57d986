"""tau, ranks and differences, computed from answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jakiro_bench.measure import Run, conversation, measure
from jakiro_bench.prompts import Prompt
from jakiro_bench.recording import RecordingGraph
from jakiro_bench.report import PLAIN, SPECULATIVE, report
from jakiro_bench.runners import EngineRunner
from jakiro_runtime import Engine
from jakiro_runtime.decoding.stats import Stats
from oracle import with_oracle


@pytest.fixture
def knowing(engine: Engine) -> Callable[[int], tuple[Run, EngineRunner]]:
    """Runs of a few tokens with a draft that knows the whole answer."""
    ids = engine.encode("A question")
    session = engine.session(speculate=False)
    truth = [*ids, *(token for chunk in session.generate(ids, 41) for token in chunk.tokens)]
    oracle = with_oracle(engine, [truth])

    def run(limit: int) -> tuple[Run, EngineRunner]:
        recording = RecordingGraph(oracle.bundle.draft)
        ours = EngineRunner(SPECULATIVE, Engine(engine.bundle.replace(draft=recording)).session(lookup=False), recording)
        prompts, plain = [Prompt("a", ("A question",))], EngineRunner(PLAIN, engine.session(speculate=False))
        return measure([ours, plain], prompts, conversation(engine, True), 2, limit, 1024, PLAIN), ours

    return run


def speculative(run: Run) -> list[Stats]:
    """Statistics of the speculative answers."""
    return [stats for turn in run.turns for answer in turn.answers[SPECULATIVE] if (stats := answer.stats)]


def test_tau_and_ranks_of_a_draft_that_knows_the_answer(knowing: Callable[[int], tuple[Run, EngineRunner]]) -> None:
    run, ours = knowing(40)
    data = report(run, ours)
    acceptance = data["detail"]["acceptance"]
    assert data["identical"]
    assert data["tau"] > 1.5
    assert acceptance["by_depth"] == sorted(acceptance["by_depth"], reverse=True)
    # the tokens of a round that ends the answer may all be nodes of its tree
    assert sum(acceptance["by_rank"]["by_tree_rank"]) == pytest.approx(data["tau"] - 1, rel=0.2)
    assert acceptance["by_rank"]["rounds"] == acceptance["rounds"]


def test_tau_counts_only_tokens_of_the_answer(knowing: Callable[[int], tuple[Run, EngineRunner]]) -> None:
    """Also where an answer ends inside a tree of which the target would have accepted more."""
    inside = 0
    for limit in range(3, 12):
        run, ours = knowing(limit)
        data, rounds, answers = report(run, ours), sum(each.rounds for each in speculative(run)), len(speculative(run))
        emitted = answers * (limit - 1)
        assert data["tau"] == pytest.approx(emitted / rounds, abs=1e-4)
        assert data["head_alone"]["tau"] == data["tau"] == data["detail"]["prompts"][0]["tau"]
        inside += sum(ours.ranks.taken_in_tree) + rounds > emitted  # a round whose last token was a node of its tree
    assert inside, "no answer ended inside a tree, so nothing was tested"
