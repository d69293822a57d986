"""N-gram proposals: what they find, what they are said to be worth, and that they change the speed and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from answers import plain, run
from jakiro_runtime import Engine, Sampling
from jakiro_runtime.decoding import decoder, proposers
from jakiro_runtime.decoding.ngram import _LENGTHS, NO_PROPOSAL, NGramProposer, Proposal
from jakiro_runtime.decoding.tree import AcceptedPath, DraftTree, NextToken, is_tree, merge_chain, subtree, top_nodes
from oracle import with_oracle
from plans import make_plan

TEXTS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def searched(text: list[int], most: int) -> list[int]:
    """What a proposal must be, by going through the text."""
    for length in _LENGTHS:
        for start in range(len(text) - 1, length - 1, -1):
            if text[start - length : start] == text[len(text) - length :]:
                return [text[start + step % (len(text) - start)] for step in range(most)]
    return []


@given(TEXTS, st.integers(1, 9))
def test_the_longest_match_is_found_where_it_stood_last(text: list[int], most: int) -> None:
    assert NGramProposer(text).propose(most).tokens == searched(text, most)


def test_matches_by_hand() -> None:
    assert NGramProposer([1, 2, 3]).propose(4) is NO_PROPOSAL
    assert NGramProposer([5, 7, 8, 9, 1, 5]).propose(3).tokens == [7, 8, 9]
    assert NGramProposer([5, 7, 1, 5, 8, 2, 5]).propose(2).tokens == [8, 2], "where it stood last"
    assert NGramProposer([1, 5, 7, 3, 2, 5, 8, 3, 1, 5]).propose(2).tokens == [7, 3], "rather the longer match than the last one"
    assert NGramProposer([9, 1, 2, 3, 1, 2, 3]).propose(7).tokens == [1, 2, 3, 1, 2, 3, 1], "a loop goes round"
    assert NGramProposer([4, 4]).propose(3).tokens == [4, 4, 4]


@given(TEXTS, st.lists(st.integers(1, 5), max_size=20))
def test_an_index_that_grows_is_the_one_that_is_built_at_once(text: list[int], steps: list[int]) -> None:
    grown: list[int] = text[:1]
    ngrams, at = NGramProposer(grown), 1
    for step in steps:
        grown += text[at : at + step]
        at += step
        assert ngrams.propose(5).tokens == NGramProposer(grown).propose(5).tokens == searched(grown, 5)


def test_chances_fall_along_a_chain_and_follow_what_came() -> None:
    text = [1, 2, 3, 4, 9, 1, 2]
    ngrams = NGramProposer(text)
    before = ngrams.propose(4).acceptance_probs
    assert before == sorted(before, reverse=True)
    assert 0 < before[-1] < before[0] < 1
    text += [3, 8, 1, 2]  # the first was right, the second was not, and after that nothing was tried
    tries, hits = ngrams._tries[:], ngrams._hits[:]
    after = ngrams.propose(4).acceptance_probs
    assert [now - then for now, then in zip(ngrams._tries, tries, strict=True)] == [0, 0, 1, 1, 0, 0, 0]
    assert [now - then for now, then in zip(ngrams._hits, hits, strict=True)] == [0, 0, 1, 0, 0, 0, 0]
    assert after[0] > before[0]


def test_a_loop_is_soon_trusted_and_junk_is_not() -> None:
    loop = [1, 2, 3] * 3
    ngrams = NGramProposer(loop)
    for place in range(40):
        proposal = ngrams.propose(6)
        loop.append(1 + place % 3)
    assert proposal.acceptance_probs[-1] > 0.8
    assert proposal.is_unbeatable
    random = np.random.default_rng(0)
    junk = [0]
    ngrams = NGramProposer(junk)
    for _ in range(200):
        proposal = ngrams.propose(6)
        junk += random.integers(0, 8, 2).tolist()
    assert max(proposal.acceptance_probs) < 0.35
    assert not proposal.is_unbeatable
    assert not NO_PROPOSAL.is_unbeatable


def test_a_chain_settles_a_tree_where_nothing_beside_it_is_likelier() -> None:
    assert Proposal([1, 2], [0.9, 0.5]).is_unbeatable  # at most 0.1 beside the first, 0.4 beside the second
    assert not Proposal([1, 2], [0.9, 0.4]).is_unbeatable
    assert not Proposal([1], [0.4]).is_unbeatable


@st.composite
def joined(draw: st.DrawFn) -> tuple[list[int], list[int], list[float], Proposal]:
    """A tree with chances that fall towards its leaves, and a chain that begins with a path of it."""
    size = draw(st.integers(0, 12))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    parents = [int(random.integers(0, node + 1)) for node in range(size)]
    tokens = [parents[:node].count(parent) for node, parent in enumerate(parents)]  # siblings differ
    chances: list[float] = []
    for parent in parents:
        chances.append((chances[parent - 1] if parent else 1.0) * float(random.random()))
    chain, row = [], 0
    while (below := [node for node in range(size) if parents[node] == row]) and random.random() < 0.7:
        row = int(random.choice(below)) + 1
        chain.append(tokens[row - 1])
    chain += random.integers(0, 5, draw(st.integers(0, 5))).tolist()
    return tokens, parents, chances, Proposal(chain, np.cumprod(random.uniform(0.3, 0.99, len(chain))).tolist())


def paths(tokens: Sequence[int], parents: Sequence[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*found[parent], token))
    return found[1:]


@given(joined(), st.integers(1, 16))
def test_a_tree_and_a_chain_become_one_tree(given_: tuple[list[int], list[int], list[float], Proposal], count: int) -> None:
    tokens, parents, chances, proposal = given_
    before = dict(zip(paths(tokens, parents), chances, strict=True))
    ours = {tuple(proposal.tokens[: n + 1]): chance for n, chance in enumerate(proposal.acceptance_probs)}
    drafted = len(tokens)
    merge_chain(tokens, parents, chances, *proposal)
    found = paths(tokens, parents)
    assert is_tree(np.array(parents, np.int64))
    assert found[:drafted] == list(before), "the head's nodes keep their places"
    assert set(found) == set(before) | set(ours)
    assert len(set(found)) == len(found), "what both have is one node"
    for path, chance in zip(found, chances, strict=True):
        assert chance == max(before.get(path, 0), ours.get(path, 0))
        assert len(path) == 1 or chance <= chances[found.index(path[:-1])]
    kept = top_nodes(chances, parents, count)
    assert len(kept) == min(count, len(tokens))
    assert set(paths(*subtree(tokens, parents, kept))) == {found[node] for node in kept}
    assert min((chances[node] for node in kept), default=0) >= max(
        (chance for node, chance in enumerate(chances) if node not in kept), default=0
    )


# In answers.

SAMPLINGS = [None, Sampling(temperature=0.8, top_p=0.9, seed=5)]


class Liar(NGramProposer):
    """Proposes at random, and is sure of it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens)
        self._random = np.random.default_rng(len(tokens))

    def propose(self, most: int) -> Proposal:
        return Proposal(self._random.integers(0, 320, most).tolist(), [0.99 - 0.01 * n for n in range(most)])


class Knowing(NGramProposer):
    """Knows what comes: the rest of a text; with a wrong token here and there."""

    truths: list[list[int]] = []  # noqa: RUF012

    def propose(self, most: int) -> Proposal:
        self._known += 1
        text = next((each for each in self.truths if each[: len(self._tokens)] == list(self._tokens)), [])
        chain = (text[len(self._tokens) :] + [5] * most)[:most]
        if self._known % 3 == 0:
            chain[self._known % most] = 7
        return Proposal(chain, [0.9**n for n in range(1, most + 1)])


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", [NGramProposer, Liar, Knowing])
@pytest.mark.parametrize("plan", [None, make_plan()], ids=["all nodes", "chosen nodes"])
def test_no_proposal_changes_an_answer(
    engine: Engine,
    prompts: list[list[int]],
    kind: type[NGramProposer],
    sampling: Sampling | None,
    plan: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proposers, "NGramProposer", kind)
    monkeypatch.setattr(engine.manifest, "tree", plan)
    prompts = prompts[1:6]  # of two tokens to more than a chunk
    looked_up = skipped = 0
    expected = [plain(engine, prompt, 60, sampling=sampling) for prompt in prompts]
    monkeypatch.setattr(Knowing, "truths", [[*p, *each.tokens] for p, each in zip(prompts, expected, strict=True)])
    for number, (prompt, truth) in enumerate(zip(prompts, expected, strict=True)):
        oracle = with_oracle(engine, [[*prompt, *truth.tokens]], number)
        for options in ({}, {"lookup": False}, {"nodes": 5}):
            found = run((engine if options else oracle).session(**options), prompt, 60, sampling=sampling)
            assert (found.tokens, found.text) == (truth.tokens, truth.text)
            stats = found.stats
            most = proposers._NGRAM_NODES if plan and not options else engine.manifest.draft.nodes
            assert stats.verified <= stats.rounds * options.get("nodes", most)
            assert stats.from_ngrams == 0 or "lookup" not in options
            looked_up += stats.from_ngrams
            skipped += stats.rounds - stats.drafts
    together = engine.generate(prompts, max_new_tokens=60, sampling=sampling)
    assert [each.tokens for each in together] == [each.tokens for each in expected]
    if kind is Knowing:
        assert looked_up > 50
        assert skipped > 10


def test_a_chain_that_goes_wrong_would_be_noticed(
    engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: a loop that believes its proposals gives other answers."""
    expected = [plain(engine, prompt, 20).tokens for prompt in prompts]
    monkeypatch.setattr(proposers, "NGramProposer", Liar)

    def believe(tree: DraftTree, next_token: NextToken) -> AcceptedPath:
        return AcceptedPath([0, 1], [tree.tokens[0], next_token(1, [tree.tokens[0]])])

    monkeypatch.setattr(decoder, "accept", believe)
    assert [run(engine.session(), prompt, 20).tokens for prompt in prompts] != expected


def goes_round(prefix: Sequence[int], scores: np.ndarray) -> np.ndarray:
    """The target says 30, 40, 50, 30, ... whatever it would have said."""
    scores[{30: 40, 40: 50}.get(prefix[-1], 30)] += 1000
    return scores


def test_text_that_loops_is_decoded_faster_than_the_head_alone_can(engine: Engine) -> None:
    how, prompt, rates = Sampling(processors=(goes_round,)), [7, 30], {}
    for lookup in (False, True):
        found = run(engine.session(lookup=lookup), prompt, 120, sampling=how)
        assert found.tokens == plain(engine, prompt, 120, sampling=how).tokens
        rates[lookup] = found.stats
    assert rates[True].tau > 3 * rates[False].tau
    assert rates[True].from_ngrams > 40
    assert rates[True].drafts < 0.7 * rates[True].rounds, "and most of the drafts are saved"
    assert rates[True].as_dict()["from_ngrams"] == rates[True].from_ngrams
    assert rates[False].from_ngrams == 0


def test_the_same_answer_does_the_same_again_whatever_came_before(engine: Engine, prompts: list[list[int]]) -> None:
    session = engine.session()
    first = run(session, prompts[4], 60).stats
    run(session, prompts[5], 60)
    session.reset()
    again = run(session, prompts[4], 60).stats
    for figure in ("rounds", "drafts", "verified", "from_ngrams", "accepted"):
        assert getattr(first, figure) == getattr(again, figure)


def test_plain_decoding_looks_nothing_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposers, "NGramProposer", None)
    assert plain(engine, [30, 40, 30], 20).stats.from_ngrams == 0
    assert run(engine.session(lookup=False), [30, 40, 30], 20).tokens == plain(engine, [30, 40, 30], 20).tokens
