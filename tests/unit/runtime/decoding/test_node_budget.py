"""The choice of nodes in each round: what it maximises, and that it changes the speed and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from answers import plain, run
from jakiro_runtime import Engine, EngineError, Sampling
from jakiro_runtime.decoding import decoder
from jakiro_runtime.decoding.node_budget import NodeBudget, mean_probs
from jakiro_runtime.format.manifest import Manifest
from jakiro_runtime.format.tree_plan import TreePlan
from oracle import with_oracle
from plans import make_plan


@given(st.lists(st.floats(-9, 0), min_size=12, max_size=12), st.sampled_from([256, 512, 1024, 4096]))
def test_the_count_is_the_one_that_gains_most(scores: list[float], capacity: int) -> None:
    plan, best_first = make_plan(log_probs=[-8.0, 0.0], acceptance=[0.1, 0.9]), np.sort(scores)[::-1]
    choice = NodeBudget(plan, 12, 12)
    assert choice.counts == [0, 2, 3, 5, 7, 11, 12]
    chances = 0.1 * np.maximum(best_first, -8) + 0.9

    def gain(count: int) -> float:
        return float(chances[:count].sum()) - 0.150 * plan.milliseconds(max(2, count + 1), capacity)

    assert gain(choice.count(choice.acceptance_probs(best_first), capacity)) == pytest.approx(
        max(map(gain, choice.counts)), abs=1e-6
    )


def test_good_trees_are_verified_whole_and_hopeless_ones_not_at_all() -> None:
    choice = NodeBudget(make_plan(), 12, 12)
    assert choice.count(choice.acceptance_probs(np.full(12, -0.01)), 256) == 12
    assert choice.count(choice.acceptance_probs(np.full(12, -7.0)), 256) == 0
    # rows cost more behind a longer context, so fewer of them are worth it
    fair = choice.acceptance_probs(np.log(np.geomspace(0.6, 0.05, 12)))
    assert 0 < choice.count(fair, 4096) < choice.count(fair, 256) < 12


def test_costs_are_linear_between_and_beyond_what_was_measured() -> None:
    plan = make_plan()
    assert plan.milliseconds(5, 256) == pytest.approx(12.5)
    assert plan.milliseconds(20, 256) == pytest.approx(20.0)
    assert plan.milliseconds(4, 640) == pytest.approx(18.0)
    assert plan.milliseconds(4, 1792) == pytest.approx(36.0)
    assert replace(plan, target_ms={"256": plan.target_ms["256"]}).milliseconds(4, 4096) == pytest.approx(12.0)


def test_drafts_that_bring_nothing_are_left_out_for_a_while() -> None:
    choice = NodeBudget(make_plan(), 12, 12)

    def drafted(accepted: int, rounds: int) -> int:
        count = 0
        for _ in range(rounds):
            if choice.should_draft():
                choice.observe_acceptance(3, accepted, 256)
                count += 1
        return count

    assert drafted(3, 40) == 40
    drafted(0, 150)
    assert drafted(0, 50) == 10  # one round in five tries again
    drafted(3, 300)
    assert drafted(3, 20) == 20
    drafted(0, 200)
    choice.start()  # a new answer
    assert choice.should_draft()


def planned(engine: Engine, plan: TreePlan | None) -> Engine:
    manifest = replace(engine.manifest, tree=plan)
    return Engine(engine.bundle.replace(manifest=manifest))


def traces(engine: Engine, prompt: list[int], **options: object) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of an answer; after each round, the nodes verified and the rounds drafted so far."""
    session, tokens, seen = engine.session(), [], []
    for event in session.generate(prompt, 60, **options):  # type: ignore[arg-type]
        tokens += event.tokens
        seen.append((session.stats.verified, session.stats.drafts))
    return tokens, seen


SAMPLINGS = [None, Sampling(temperature=0.8, top_p=0.9, seed=5)]
# drafts so dear that they seldom pay, so that some rounds go without
DEAR_PLAN = make_plan(expected={"tokens_per_second": 250.0}, draft_ms=20.0)


@pytest.mark.parametrize("plan", [make_plan(), DEAR_PLAN], ids=["usual", "pausing"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_the_output_is_the_plain_one_whatever_is_verified(
    engine: Engine, prompts: list[list[int]], plan: TreePlan, sampling: Sampling | None
) -> None:
    counts, paused = set[int](), 0
    for seed, prompt in enumerate(prompts):
        expected = plain(engine, prompt, 60, sampling=sampling).tokens
        knowing = planned(with_oracle(engine, [[*prompt, *expected]], seed), plan)
        tokens, seen = traces(knowing, prompt, sampling=sampling)
        assert tokens == expected
        verified = [total for total, _ in seen]
        counts |= set(np.diff(verified).tolist())
        paused += len(seen) - 1 - seen[-1][1]
    assert len(counts) >= 3, "the choice never varied, so nothing was tested"
    assert paused > 0 or plan is not DEAR_PLAN


def test_a_round_that_goes_wrong_would_be_noticed(
    engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: with rows that do not see their ancestors, some answer differs."""
    honest = decoder.tree_mask

    def blind(parents: list[int], rows: int) -> tuple[np.ndarray, list[int]]:
        return np.eye(rows, dtype=bool), honest(parents, rows)[1]

    answers = [plain(engine, prompt, 60).tokens for prompt in prompts]
    monkeypatch.setattr(decoder, "tree_mask", blind)
    knowing = [planned(with_oracle(engine, [[*p, *a]]), make_plan()) for p, a in zip(prompts, answers, strict=True)]
    assert any(run(each.session(), p, 60).tokens != a for each, p, a in zip(knowing, prompts, answers, strict=True))


def test_the_same_engine_verifies_the_same_nodes_again(engine: Engine, prompts: list[list[int]]) -> None:
    for prompt in prompts[3:6]:
        first, again = (traces(planned(engine, DEAR_PLAN), prompt) for _ in range(2))
        assert first == again
        session = planned(engine, DEAR_PLAN).session()
        run(session, prompts[0], 60)  # an answer before it changes nothing
        session.reset()
        run(session, prompt, 60)
        assert (session.stats.verified, session.stats.drafts) == first[1][-1]


def test_nodes_that_are_asked_for_are_fixed(engine: Engine, prompts: list[list[int]]) -> None:
    for lookup in (False, True):
        fixed = run(planned(engine, DEAR_PLAN).session(nodes=4, lookup=lookup), prompts[3], 30).stats
        assert fixed.verified == 4 * fixed.rounds
        assert fixed.drafts == fixed.rounds or lookup
        whole = run(engine.session(lookup=lookup), prompts[3], 30).stats
        assert whole.verified == engine.manifest.draft.nodes * whole.rounds


def test_a_plan_survives_engine_json(tiny_engine: Path) -> None:
    manifest = replace(Manifest.read(tiny_engine), tree=make_plan())
    data = manifest.to_dict()
    assert Manifest.from_dict(data).tree == make_plan()
    data["tree"]["something new"] = 1
    assert Manifest.from_dict(data).tree == make_plan()
    assert Manifest.from_dict(data).to_dict() == data
    del data["tree"]["rows"]
    with pytest.raises(EngineError, match="export it again"):
        Manifest.from_dict(data)
    assert "tree" not in Manifest.read(tiny_engine).to_dict()


def test_an_answer_that_goes_fast_makes_rows_dearer() -> None:
    choice, chances = NodeBudget(make_plan(), 12, 15), [0.3] * 15
    assert choice.counts[-1] == 15
    assert choice.count(chances, 256) == 15  # 0.3 tokens for 0.5 ms, at 0.15 tokens a ms
    for _ in range(100):
        choice.observe_throughput(15, 12, False, 256)
    assert choice.count(chances, 256) == 2  # at 0.66 tokens a ms; two nodes are one row more than the two that are never saved
    choice.start()
    assert choice.count(chances, 256) == 15
    assert choice.count(chances[:3], 256) == 3  # no more than there are


def test_guesses_may_have_more_rows_than_the_tree(engine: Engine) -> None:
    """A text that repeats itself: with a plan of a small tree, rounds accept more than the tree has nodes."""
    plan = make_plan(shape={"depth": 3, "top_k": 4, "nodes": 12}, rows=[2, 3, 4, 6, 8, 12, 16])
    prompt = list(range(3, 30))
    answer = plain(engine, prompt, 60).tokens
    session = planned(engine, plan).session()
    text = [*prompt, *answer, *prompt]  # what follows the prompt stood there before
    assert run(session, text, 40).tokens == plain(engine, text, 40).tokens
    assert max(np.flatnonzero(session.stats.accepted), default=0) + 1 <= 15


def test_a_batch_verifies_what_its_rows_are_worth_to_all_of_it() -> None:
    def count(batch: int, *trees: float) -> int:
        budget = NodeBudget(make_plan(), 12, 12, batch)
        return budget.count(mean_probs([budget.acceptance_probs(np.full(12, score)) for score in trees]), 256)

    assert count(1, -2.0) == 12
    assert count(64, -2.0) == 0, "a row of 64 sequences costs 32 ms"
    assert count(64, -0.1) == 12
    assert count(2, -0.1, -8.0) == 12
    assert count(64, -1.5) > 0
    assert count(64, -1.5, -8.0) == 0, "half of the batch pays for rows that it does not need"


def test_batches_with_measured_costs_answer_as_each_alone(engine: Engine, prompts: list[list[int]]) -> None:
    alone = [plain(engine, prompt, 24) for prompt in prompts]
    truths = [[*prompt, *answer.tokens] for prompt, answer in zip(prompts, alone, strict=True)]
    verified = []
    for dear in (0.1, 1000.0):
        plan = make_plan()
        costs = {slots: [dear * each for each in range(10, 10 + len(plan.rows))] for slots in plan.target_ms}
        expert = with_oracle(engine, truths)
        manifest = replace(expert.manifest, tree=replace(plan, target_ms=costs, draft_ms=0.0 if dear < 1 else 1e6))
        measured = Engine(expert.bundle.replace(manifest=manifest))
        results = measured.generate(prompts, max_new_tokens=24)
        assert [result.tokens for result in results] == [answer.tokens for answer in alone]
        verified.append(sum(result.stats.verified for result in results))
    assert verified[0] > verified[1]
