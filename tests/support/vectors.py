"""Golden vectors: inputs and results of the loop's pure parts, for every implementation of them.

    python tests/support/vectors.py            write tests/vectors/*.json from the Python code
    python tests/support/vectors.py --check    say which files differ, and write nothing

A case is {"call": name, "given": {...}, "expected": ...}. Numbers are exact: reading a double gives it back to the last bit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jakiro_runtime.decoding.ngram import NGramProposer
from jakiro_runtime.decoding.node_budget import FixedBudget, NodeBudget
from jakiro_runtime.decoding.tree import DraftTree, accept, merge_chain, subtree, top_nodes, tree_mask
from jakiro_runtime.format.tree_plan import TreePlan
from jakiro_runtime.sampling import Sampling
from jakiro_runtime.sampling.philox import philox, uniform
from jakiro_runtime.sampling.sampler import Sampler
from jakiro_runtime.sampling.warping import invert, warp
from plans import make_plan

FOLDER = Path(__file__).resolve().parents[1] / "vectors"
Given = dict[str, Any]


# What each call does with what it is given.


def _tree_mask(parents: list[int], rows: int) -> Given:
    mask, depths = tree_mask(parents, rows)
    return {"mask": ["".join("01"[int(seen)] for seen in row) for row in mask], "depths": depths}


def _merge_chain(tokens: list[int], parents: list[int], probs: list[float], chain: list[int], chain_probs: list[float]) -> Given:
    tokens, parents, probs = tokens[:], parents[:], probs[:]
    merge_chain(tokens, parents, probs, chain, chain_probs)
    return {"tokens": tokens, "parents": parents, "probs": probs}


def _subtree(tokens: list[int], parents: list[int], kept: list[int]) -> Given:
    return dict(zip(("tokens", "parents"), subtree(tokens, parents, kept), strict=True))


def _accept(tokens: list[int], parents: list[int], next_tokens: list[int]) -> Given:
    """next_tokens: the target's token after each row, the root's first."""
    return accept(DraftTree(tokens, parents), lambda row, path: next_tokens[row])._asdict()


def _philox(key: list[int], counter: list[int]) -> list[int]:
    return list(philox(key[0], key[1], (counter[0], counter[1], counter[2], counter[3])))


def _draw(scores: list[float], sampling: Given, u: list[float]) -> Given:
    """The tokens that may be drawn, their weights up to a common factor, and the one that each number draws."""
    tokens, weights = warp(np.array(scores), Sampling(**sampling))
    drawn = [int(tokens[invert(weights, each)]) for each in u]
    return {"tokens": tokens.tolist(), "weights": weights.tolist(), "drawn": drawn}


def _scores(logits: list[float], sampling: Given, prefix: list[int], generated: int, eos: list[int]) -> list[float]:
    """Scores after every rule that comes before temperature; minus infinity is written as null."""
    bias = {int(token): value for token, value in sampling.get("logit_bias", {}).items()}
    sampler = Sampler(Sampling(**{**sampling, "logit_bias": bias}), frozenset(eos), len(logits))
    found = sampler.scores(np.array(logits, np.float32), prefix, generated)
    return [None if value == -np.inf else value for value in found.tolist()]


def _ngram(prompt: list[int], steps: list[list[int]], most: int) -> list[Given]:
    """A proposal after the prompt, and after each step's tokens have been appended to it."""
    tokens = prompt[:]
    proposer = NGramProposer(tokens)
    found = []
    for step in [[], *steps]:
        tokens += step
        proposal = proposer.propose(most)
        found.append({**proposal._asdict(), "is_unbeatable": proposal.is_unbeatable})
    return found


def _node_budget(plan: Given, nodes: int, most: int, rounds: list[Given]) -> Given:
    """Rounds of one answer: whether each drafts, how many nodes it verifies; and what it then observes."""
    budget = NodeBudget(TreePlan(**plan), nodes, most)
    found = []
    for each in rounds:
        drafts = budget.should_draft()
        probs = budget.acceptance_probs(np.array(each["scores"])) if drafts else []
        count = budget.count(sorted(probs, reverse=True), each["capacity"])
        accepted = min(each["accepted"], count)
        if drafts:
            budget.observe_acceptance(count, accepted, each["capacity"])
        budget.observe_throughput(count, accepted + 1, drafts, each["capacity"])
        found.append({"drafts": drafts, "acceptance_probs": probs, "count": count})
    return {"counts": budget.counts, "row_counts": budget.row_counts, "rounds": found}


CALLS: dict[str, Callable[..., Any]] = {
    "tree_mask": _tree_mask,
    "merge_chain": _merge_chain,
    "top_nodes": top_nodes,
    "subtree": _subtree,
    "accept": _accept,
    "philox": _philox,
    "uniform": uniform,
    "draw": _draw,
    "scores": _scores,
    "ngram": _ngram,
    "node_budget": _node_budget,
    "fixed_row_counts": lambda most: FixedBudget(most).row_counts,
}


# What they are given.


def _random_tree(random: np.random.Generator, nodes: int) -> tuple[list[int], list[int], list[float]]:
    """Tokens, parents and probabilities that fall towards the leaves; siblings differ."""
    parents = [int(random.integers(0, node + 1)) for node in range(nodes)]
    tokens = [5 + parents[:node].count(parent) for node, parent in enumerate(parents)]
    probs: list[float] = []
    for parent in parents:
        probs.append((probs[parent - 1] if parent else 1.0) * float(random.random()))
    return tokens, parents, probs


def _tree_cases(random: np.random.Generator) -> list[tuple[str, Given]]:
    cases: list[tuple[str, Given]] = [("tree_mask", {"parents": [], "rows": 1}), ("tree_mask", {"parents": [], "rows": 3})]
    for nodes in (1, 4, 9, 17, 31):
        tokens, parents, probs = _random_tree(random, nodes)
        chain = [tokens[0], *random.integers(5, 8, 4).tolist()]
        chain_probs = np.cumprod(random.uniform(0.3, 0.99, len(chain))).tolist()
        cases += [
            ("tree_mask", {"parents": parents, "rows": nodes + 1 + nodes % 3}),
            ("merge_chain", {"tokens": tokens, "parents": parents, "probs": probs, "chain": chain, "chain_probs": chain_probs}),
        ]
        tied = [round(prob, 1) for prob in probs]
        for count in (0, 1, nodes // 2, nodes, nodes + 5):
            cases += [("top_nodes", {"ranks": ranks, "parents": parents, "count": count}) for ranks in (probs, tied)]
            cases.append(("subtree", {"tokens": tokens, "parents": parents, "kept": top_nodes(probs, parents, count)}))
    return cases


def _acceptance_cases(random: np.random.Generator) -> list[tuple[str, Given]]:
    cases: list[tuple[str, Given]] = [("accept", {"tokens": [], "parents": [], "next_tokens": [7]})]
    for nodes in (1, 3, 8, 15, 15, 31, 31):
        tokens, parents, _ = _random_tree(random, nodes)
        after = [
            int(random.choice([token for token, parent in zip(tokens, parents, strict=True) if parent == row] or [99]))
            if random.random() < 0.85
            else 99
            for row in range(nodes + 1)
        ]
        cases.append(("accept", {"tokens": tokens, "parents": parents, "next_tokens": after}))
    return cases


def _philox_cases(random: np.random.Generator) -> list[tuple[str, Given]]:
    ones = 0xFFFFFFFF
    pi = ([0xA4093822, 0x299F31D0], [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344])
    cases: list[tuple[str, Given]] = [
        ("philox", {"key": key, "counter": counter}) for key, counter in (([0, 0], [0] * 4), ([ones] * 2, [ones] * 4), pi)
    ]
    for seed in (0, 1, 7, (1 << 32) - 1, 1 << 32, (1 << 64) - 1):
        cases += [("uniform", {"seed": seed, "position": position}) for position in (0, 1, 2, 4095, 1 << 31, 1 << 33)]
    return cases


_WARPINGS: list[Given] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "top_p": 0.05},
    {"temperature": 0.8, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.02},
]


def _warping_cases(random: np.random.Generator) -> list[tuple[str, Given]]:
    cases: list[tuple[str, Given]] = []
    for vocab in (6, 40):
        for number, sampling in enumerate(_WARPINGS):
            scores = np.float32(random.standard_normal(vocab) * 3)
            if number % 3 == 0:
                scores = scores.round()  # ties
            u = [0.0, *random.random(6).round(6).tolist(), 0.999999]
            cases.append(("draw", {"scores": scores.astype(float).tolist(), "sampling": sampling, "u": u}))
    rules: list[Given] = [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {"logit_bias": {"3": 2.5, "7": -100.0}},
        {"min_new_tokens": 4},
        {"repetition_penalty": 1.2, "logit_bias": {"1": 1.0}, "min_new_tokens": 2},
    ]
    for sampling in rules:
        logits = np.float32(random.standard_normal(12) * 2).astype(float).tolist()
        given = {"logits": logits, "sampling": sampling, "prefix": [3, 5, 3, 9], "generated": 2, "eos": [2, 11]}
        cases.append(("scores", given))
    return cases


def _ngram_cases(random: np.random.Generator) -> list[tuple[str, Given]]:
    cases: list[tuple[str, Given]] = [
        ("ngram", {"prompt": [1, 2, 3], "steps": [[1], [2, 3], [1, 2, 3]], "most": 5}),
        ("ngram", {"prompt": [4, 4], "steps": [[4], [4], [9], [4]], "most": 3}),
        ("ngram", {"prompt": [1, 2, 3, 4, 9, 1, 2], "steps": [[3, 8, 1, 2], [3, 4], [9]], "most": 4}),
    ]
    for vocab in (3, 8, 50):
        prompt = random.integers(0, vocab, 30).tolist()
        steps = [random.integers(0, vocab, int(random.integers(1, 4))).tolist() for _ in range(15)]
        cases.append(("ngram", {"prompt": prompt, "steps": steps, "most": 6}))
    return cases


def _node_budget_cases(random: np.random.Generator) -> list[tuple[str, Given]]:
    cases: list[tuple[str, Given]] = [("fixed_row_counts", {"most": most}) for most in (1, 7, 8, 31, 60)]
    for nodes, most, luck in ((12, 12, 0.7), (12, 15, 0.9), (4, 15, 0.1), (12, 12, 0.0)):
        rounds = []
        for number in range(40):
            scores = np.sort(-random.exponential(1.5, nodes))[::-1].round(6).tolist()
            accepted = int(random.binomial(4, luck))
            rounds.append({"scores": scores, "capacity": 256 if number < 20 else 1024, "accepted": accepted})
        plan = asdict(make_plan())
        cases.append(("node_budget", {"plan": plan, "nodes": nodes, "most": most, "rounds": rounds}))
    return cases


FILES: dict[str, Callable[[np.random.Generator], list[tuple[str, Given]]]] = {
    "tree": _tree_cases,
    "acceptance": _acceptance_cases,
    "philox": _philox_cases,
    "warping": _warping_cases,
    "ngram": _ngram_cases,
    "node_budget": _node_budget_cases,
}


def text(name: str) -> str:
    """The contents of a file, from the code as it is; a case a line."""
    given = FILES[name](np.random.default_rng(2026))
    cases = [{"call": call, "given": values, "expected": CALLS[call](**values)} for call, values in given]
    return "[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n"


def main() -> int:
    """Write the files, or with --check say which would change."""
    changed = [name for name in FILES if not (path := FOLDER / f"{name}.json").exists() or path.read_text() != text(name)]
    if "--check" in sys.argv:
        print("\n".join(f"{FOLDER / name}.json differs from the code; run make vectors if that is meant" for name in changed))
        return int(bool(changed))
    FOLDER.mkdir(exist_ok=True)
    for name in changed:
        (FOLDER / f"{name}.json").write_text(text(name))
        print(f"Wrote {FOLDER / name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
