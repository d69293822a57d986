"""The sampler: transformers' rules, one number a position, the right distribution, the same tokens on any tree."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from answers import plain, run
from jakiro_runtime import Engine, EngineError, Sampling, UsageError
from jakiro_runtime.decoding.tree import DraftTree, accept
from jakiro_runtime.sampling import NO_TOKEN, Sampler
from jakiro_runtime.sampling.philox import philox, uniform
from jakiro_runtime.sampling.warping import invert, warp
from oracle import with_oracle
from variety import VARIETY


def test_philox_against_the_authors_vectors() -> None:
    ones = 0xFFFFFFFF
    assert philox(0, 0, (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox(ones, ones, (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox(0xA4093822, 0x299F31D0, pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_the_numbers_are_uniform_and_differ_by_seed_and_position() -> None:
    numbers = np.array([uniform(7, position) for position in range(20000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.bincount((numbers * 50).astype(int), minlength=50)
    assert ((counts - 400) ** 2 / 400).sum() < 100  # chi-square, 49 degrees of freedom: beyond 1e-5
    assert len({uniform(seed, position) for seed, position in product((0, 1, 2**63), range(100))}) == 300


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    st.sampled_from([0, 1, 5, 40, 1000]),
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([1.0, 1.3, 0.8]),
    st.booleans(),
)
def test_rules_as_transformers_applies_them(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, biased: bool
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(700) * random.choice([1, 4])).astype(np.float32)
    prefix = random.integers(0, 700, 30).tolist()
    bias = {3: 2.0, 11: -4.0} if biased else {}
    theirs = LogitsProcessorList()
    if bias:
        theirs.append(SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}))
    if penalty != 1:
        theirs.append(RepetitionPenaltyLogitsProcessor(penalty))
    theirs.append(TemperatureLogitsWarper(temperature))
    if top_k:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        theirs.append(TopPLogitsWarper(top_p))
    if min_p:
        theirs.append(MinPLogitsWarper(min_p))
    wanted = theirs(torch.tensor([prefix]), torch.from_numpy(logits)[None].double())[0].softmax(-1).numpy()

    ours = Sampling(temperature, top_k, top_p, min_p, penalty, bias, seed=seed)
    scores = Sampler(ours, frozenset([0]), 700).scores(logits, prefix, 0)
    tokens, weights = warp(scores, ours)
    found = np.zeros(700)
    found[tokens] = weights / weights.sum()
    assert np.abs(found - wanted).max() < 1e-9


def test_no_end_before_min_new_tokens() -> None:
    sampler = Sampler(Sampling(min_new_tokens=3), frozenset([2]), 5)
    logits = np.array([0, 1, 9, 3, 2], np.float32)
    assert [sampler.choose(2, logits, [1] * n, n) for n in range(5)] == [3, 3, 3, 2, 2]


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": 2}, {"top_k": -1}, {"repetition_penalty": 0}, {"seed": -1}],
)
def test_a_value_out_of_range_gets_a_sentence(wrong: dict) -> None:
    name = next(iter(wrong))
    with pytest.raises(UsageError, match=f"{name} is .*; expected"):
        Sampling(**wrong)


def test_a_bias_for_no_token_gets_a_sentence(engine: Engine) -> None:
    with pytest.raises(UsageError, match="outside 0..319"):
        run(engine.session(), [5], sampling=Sampling(logit_bias={320: 1.0}))


@pytest.mark.parametrize("sampling", VARIETY, ids=range(len(VARIETY)))
def test_speculation_changes_no_draw(engine: Engine, prompts: list[list[int]], sampling: Sampling) -> None:
    expected = [plain(engine, prompt, sampling=sampling).tokens for prompt in prompts]
    truths = [[*p, *a] for p, a in zip(prompts, expected, strict=True)]
    rounds = 0
    for nodes, seed in ((None, 0), (None, 1), (4, 2)):
        oracle = with_oracle(engine, truths, seed)
        for prompt, wanted in zip(prompts, expected, strict=True):
            result = run(oracle.session(nodes=nodes, chunk=61), prompt, sampling=sampling)
            assert result.tokens == wanted
            rounds += result.stats.rounds
    assert rounds < 0.8 * 3 * sum(map(len, expected))
    if sampling.temperature:
        other = Sampling(temperature=sampling.temperature, seed=99)
        assert [plain(engine, prompt, sampling=other).tokens for prompt in prompts] != expected


@pytest.mark.parametrize("sampling", [Sampling(logprobs=3), Sampling(temperature=0.7, seed=1, logprobs=0)])
def test_log_probabilities_are_the_targets(engine: Engine, prompts: list[list[int]], sampling: Sampling) -> None:
    prompt = prompts[4]
    expected = plain(engine, prompt, sampling=sampling)
    oracle = with_oracle(engine, [[*prompt, *expected.tokens]])
    found = run(oracle.session(), prompt, sampling=sampling)
    assert found.stats.rounds < expected.stats.rounds
    assert found.logprobs == expected.logprobs  # to the last bit
    assert [each.token for each in found.logprobs] == found.tokens
    for each in found.logprobs:
        assert each.logprob <= 0
        assert len(each.top) == sampling.logprobs
        assert [value for _, value in each.top] == sorted((value for _, value in each.top), reverse=True)
        if each.top and not sampling.temperature:
            assert each.top[0] == (each.token, each.logprob)


# -- the distribution, on a model small enough to enumerate

WORDS, LENGTH = 4, 3
_TABLE = np.random.default_rng(5).standard_normal((WORDS + 1, WORDS + 1, WORDS)) * 1.5
SETTINGS = Sampling(temperature=0.8, top_p=0.9)


def logits_after(prefix: list[int]) -> np.ndarray:
    """A second-order Markov chain over four words."""
    before, last = ([WORDS, WORDS, *prefix])[-2:]
    return _TABLE[before, last]


def exact() -> dict[tuple[int, ...], float]:
    """The probability of every sequence, by multiplying what may be drawn at each step."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for prefix, mass in found.items():
            tokens, weights = warp(logits_after(list(prefix)), SETTINGS)
            for token, weight in zip(tokens.tolist(), weights / weights.sum(), strict=True):
                longer[(*prefix, token)] = mass * weight
        found = longer
    return found


def speculate(draw, rng: np.random.Generator) -> tuple[int, ...]:
    """Rounds of the real walk over random trees; `draw(prefix, accepted)` is the target's choice."""
    out: list[int] = []
    while len(out) < LENGTH:
        nodes = int(rng.integers(0, 6))
        parents = np.array([rng.integers(0, node + 1) for node in range(nodes)], np.int64)
        tokens = rng.integers(0, WORDS, nodes)
        _, chosen = accept(DraftTree(tokens, parents), lambda row, path, before=tuple(out): draw([*before, *path]))
        out += chosen
    return tuple(out[:LENGTH])


def chi_square(draws: Counter[tuple[int, ...]], total: int) -> float:
    """Pearson's statistic by its degrees of freedom; about 1 for the right distribution."""
    expected = exact()
    if set(draws) - set(expected):
        return float("inf")
    return sum((draws[s] - total * p) ** 2 / (total * p) for s, p in expected.items()) / (len(expected) - 1)


def sample(fault: str | None, total: int) -> float:
    rng = np.random.default_rng(0)
    draws: Counter[tuple[int, ...]] = Counter()
    for seed in range(total):

        def draw(prefix: list[int], seed: int = seed) -> int:
            scores = logits_after(prefix)
            how = SETTINGS
            if fault == "an unwarped bonus token" and len(prefix) == 2:
                how = Sampling(temperature=1.0)
            position = 0 if fault == "one number for every position" else len(prefix)
            tokens, weights = warp(scores, how)
            return int(tokens[invert(weights, uniform(seed, position))])

        if fault == "a child is accepted without the draw":
            first = draw([])
            child = int(rng.integers(0, WORDS))
            second = child if rng.random() < 0.2 else draw([first])
            draws[(first, second, draw([first, second]))] += 1
        else:
            draws[speculate(draw, rng)] += 1
    return chi_square(draws, total)


@pytest.mark.slow
def test_a_hundred_thousand_draws_have_the_exact_distribution() -> None:
    assert sample(None, 100_000) < 1.8


def test_draws_have_the_exact_distribution() -> None:
    assert sample(None, 4_000) < 1.8


@pytest.mark.parametrize(
    "fault", ["an unwarped bonus token", "one number for every position", "a child is accepted without the draw"]
)
def test_a_wrong_rule_is_noticed(fault: str) -> None:
    assert sample(fault, 4_000) > 3


def test_top_p_looks_no_further_than_it_must() -> None:
    scores = np.random.default_rng(0).standard_normal(50_000)
    flat = warp(scores * 1e-6, Sampling(temperature=1.0, top_p=0.5))
    assert 24_900 < len(flat[0]) < 25_100
    assert (np.diff(flat[0]) > 0).all()


@pytest.mark.parametrize("temperature", [1e-320, 1e-300, 1e-30])
def test_the_lowest_temperatures_take_the_best_token(temperature: float) -> None:
    logits = np.linspace(-5, 5, 50)[np.random.default_rng(0).permutation(50)].astype(np.float32)
    for scores in (logits, -logits - 100, logits * 1e30):
        sampler = Sampler(Sampling(temperature=temperature, top_p=0.9, min_p=0.1), frozenset({1}), 50)
        assert sampler.choose(0, scores, [3], 0) == int(scores.argmax())


@pytest.mark.parametrize(
    "values",
    [{name: value} for name in ("temperature", "top_p", "min_p", "repetition_penalty") for value in (np.nan, np.inf, -1, "1")]
    + [{"repetition_penalty": 1e-320}, {"seed": 1.5}, {"seed": 1 << 64}, {"top_k": 0.5}, {"logprobs": -1}, {"temperature": True}]
    + [{"logit_bias": {5: bias}} for bias in (np.inf, -np.inf, np.nan, 1e300, "1")]
    + [{"logit_bias": {"5": 1.0}}],
    ids=str,
)  # fmt: skip
def test_a_value_that_cannot_be_sampled_with_is_refused(values: dict) -> None:
    with pytest.raises(UsageError, match="expected"):
        Sampling(**values)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_every_token_is_forbidden_there_is_none(temperature: float) -> None:
    def forbid(prefix, scores):
        return np.full_like(scores, -np.inf)

    sampler = Sampler(Sampling(temperature=temperature, processors=[forbid]), frozenset({1}), 50)
    assert sampler.choose(0, np.zeros(50, np.float32), [3], 0) == NO_TOKEN
    with pytest.raises(EngineError, match="not numbers"):
        Sampler(Sampling(temperature=temperature, min_new_tokens=1), frozenset({1}), 50).choose(
            0, np.full(50, np.nan, np.float32), [3], 0
        )


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_answer_ends_where_no_token_is_allowed(engine: Engine, prompts: list[list[int]], temperature: float) -> None:
    grammar = engine.grammar(regex="yes|no")
    sampling = Sampling(temperature=temperature, min_new_tokens=10)
    expected = plain(engine, prompts[3], 20, sampling=sampling, grammar=grammar)
    assert (expected.finish_reason, expected.text in ("yes", "no")) == ("constraint", True)
    session = engine.session()
    result = run(session, prompts[3], 20, sampling=sampling, grammar=grammar)
    assert (result.tokens, result.text, result.finish_reason) == (expected.tokens, expected.text, "constraint")
    onward = [*prompts[3], *result.tokens, 7]
    assert run(session, onward).tokens == plain(engine, onward).tokens
    both = engine.generate(
        [prompts[3], prompts[2]], max_new_tokens=20, sampling=[sampling, Sampling(min_new_tokens=9)], grammar=grammar
    )
    assert [each.finish_reason for each in both] == ["constraint", "constraint"]
