"""Five exported trees, every way of choosing tokens, fp32 and int8: speculation changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from answers import plain, run
from grammars import FORMS
from jakiro_export.artifact.writer import DataFiles, save
from jakiro_export.graphs import draft_graph
from jakiro_export.heads.config import TreeShape
from jakiro_runtime import Engine, GenerationResult, Sampling
from jakiro_runtime.backends.onnxruntime import open_graph
from oracle import with_oracle
from variety import VARIETY

SHAPES = {
    "deep": (TreeShape(5, 8, 31), None),
    "published pairing": (TreeShape(2, 3, 12, "published"), None),
    "few words": (TreeShape(3, 4, 12), 64),
    "one level and the parallel one": (TreeShape(1, 5, 9), None),
    "narrow": (TreeShape(4, 2, 18), None),
}
MODES: dict[str, dict[str, object]] = {
    "greedy": {"sampling": Sampling(logprobs=1)},
    **{f"sampled {number}": {"sampling": sampling} for number, sampling in enumerate(VARIETY)},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory, tiny_target: Path, tiny_head: Path) -> dict[str, Path]:
    """A draft graph a shape; they fit every tiny engine."""
    made = {}
    for name, (shape, vocab) in SHAPES.items():
        folder = tmp_path_factory.mktemp("draft")
        with DataFiles(folder) as files:
            save(draft_graph(tiny.draft_plan(tiny_target, tiny_head, shape, vocab), {}), folder / "draft.onnx", files)
        made[name] = folder / "draft.onnx"
    return made


@pytest.fixture(scope="module", params=["fp32", "int8"])
def base(request: pytest.FixtureRequest, tiny_engine: Path, tiny_int8: Path) -> Engine:
    return Engine.open(tiny_engine if request.param == "fp32" else tiny_int8)


def same(found: GenerationResult, expected: GenerationResult) -> bool:
    return (found.tokens, found.text, found.finish_reason, found.logprobs) == (
        expected.tokens, expected.text, expected.finish_reason, expected.logprobs,
    )  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_no_tree_changes_an_answer(base: Engine, prompts: list[list[int]], drafts: dict[str, Path], name: str) -> None:
    shape, vocab = SHAPES[name]
    draft = replace(
        base.manifest.draft, depth=shape.depth, top_k=shape.top_k, nodes=shape.nodes, draft_vocab=vocab, pairing=shape.pairing
    )
    manifest = replace(base.manifest, draft=draft)
    engine = Engine(base.bundle.replace(manifest=manifest, draft=open_graph(drafts[name])))
    grammar = {"sampling": Sampling(temperature=1.2, seed=3), "grammar": engine.grammar(**FORMS["json"])}
    deepest = 0
    for how in (*MODES.values(), grammar):
        for prompt in prompts[4:5]:
            expected = plain(engine, prompt, 30, **how)
            assert same(run(engine.session(), prompt, 30, **how), expected)
            oracle = with_oracle(engine, [[*prompt, *expected.tokens]])
            found = run(oracle.session(chunk=29), prompt, 30, **how)
            assert same(found, expected)
            accepted = found.stats.accepted
            deepest = max([deepest, *(level for level, count in enumerate(accepted, 1) if count)])
    assert deepest == shape.depth + 1, "some tree should have been accepted down to its last level"
