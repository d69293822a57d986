"""The draft graph against the paper's arithmetic, written a second time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny
from jakiro_export.artifact.writer import DataFiles, save
from jakiro_export.graphs import draft_graph
from jakiro_export.heads.config import TreeShape
from jakiro_export.heads.trees import EAGLE_PATHS, DynamicBeam, SerialThenParallel, StaticPaths
from jakiro_runtime import contract
from jakiro_runtime.backends.evaluate import GraphCall
from jakiro_runtime.backends.onnxruntime import open_graph
from reference_draft import PlainDraft, PlainEagle, PlainEagle3, PlainGumiho, PlainJakiro3, PlainStar

SHAPES = [
    (TreeShape(5, 8, 31), None),
    (TreeShape(2, 3, 12, "published"), None),
    (TreeShape(3, 4, 12, "published"), 100),
    (TreeShape(1, 5, 9), 64),
    (TreeShape(4, 2, 18), None),
    (TreeShape(2, 3, 14, parallel=False), 80),
]


PLAIN = {
    "jakiro": PlainDraft,
    "jakiro3": PlainJakiro3,
    "jakiro_star": PlainStar,
    "eagle": PlainEagle,
    "eagle3": PlainEagle3,
    "gumiho": PlainGumiho,
}


class DraftCase:
    """One exported draft graph, its plain twin, and how to run both on the same inputs."""

    def __init__(
        self,
        folder: Path,
        target: Path,
        head: Path,
        tree: TreeShape | StaticPaths,
        vocab: int | None = None,
        opset: int = 23,
    ) -> None:
        """tree: a beam's shape, or static paths."""
        plan = tiny.draft_plan(target, head, tree if isinstance(tree, TreeShape) else TreeShape(), vocab, opset)
        if isinstance(tree, StaticPaths):
            plan = replace(plan, tree=tree)
        elif not isinstance(plan.tree, SerialThenParallel):
            plan = replace(plan, tree=DynamicBeam(tree))
        with DataFiles(folder) as files:
            save(draft_graph(plan, {}), folder / "draft.onnx", files)
        sizes = (2, 8, int(plan.target.config.hidden_size), plan.tree.shape.nodes)
        given = contract.draft(*sizes, plan.feature_layers, plan.head.config.layers)
        self.graph = GraphCall(open_graph(folder / "draft.onnx"), given)
        embedding = load_file(target / "model.safetensors")["model.embed_tokens.weight"]
        plain: Any = PLAIN[plan.head.variant]
        flags = plan.head.flags if plain is PlainEagle3 else {}
        self.plain = plain(load_file(head / "model.safetensors"), embedding, 6, 2, 10000.0, **flags)
        self.tree, self.vocab = tree, None if plan.token_map is None else plan.token_map.tolist()

    def check(self, seed: int, rows: int, padding: int, past: int, capacity: int) -> None:
        rng = np.random.default_rng(seed)
        real = rows - padding
        tokens = rng.integers(0, tiny.VOCAB, rows)
        asked = self.graph.contract
        features = rng.standard_normal((rows, int(asked.features.dims[-1]))).astype(np.float32)
        # slots beyond `past` hold rubbish
        cache = {spec.name: rng.standard_normal((1, 2, capacity, 8)).astype(np.float32) for spec in asked.caches}
        ours = self.graph(
            input_ids=tokens[None],
            position_ids=np.arange(past, past + rows)[None],
            last_row=np.array([real - 1]),
            past_length=np.array([past]),
            **{asked.features.name: features[None]},
            **cache,
        )
        slots = [torch.from_numpy(each[0]).double() for each in cache.values()]  # all keys, then all values
        pairs = list(zip(slots[: len(slots) // 2], slots[len(slots) // 2 :], strict=True))
        keys: list[Any] = [[(key[:, n], value[:, n]) for key, value in pairs] for n in range(past)]
        if len(pairs) == 1 and not isinstance(self.plain, PlainEagle3):
            keys = [row[0] for row in keys]
        given = (tokens[:real].tolist(), torch.from_numpy(features[:real]), list(range(past, past + real)), keys)
        if isinstance(self.tree, StaticPaths):
            plain = self.plain.static_tree(*given, self.tree.paths)
        else:
            s = self.tree
            plain = self.plain.tree(*given, s.depth, s.top_k, s.nodes, s.pairing, self.vocab, s.parallel)
        np.testing.assert_allclose(ours["tree_scores"][0], [node.score for node in plain], atol=2e-4)
        assert ours["tree_tokens"][0].tolist() == [node.token for node in plain]
        assert ours["tree_parents"][0].tolist() == [node.parent for node in plain]


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=() if n == 3 else pytest.mark.slow) for n in range(len(SHAPES))],
    ids=lambda n: f"shape{n}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_target: Path) -> DraftCase:
    shape, vocab = SHAPES[request.param]
    opset = 20 if request.param == 1 else 23
    folder = tmp_path_factory.mktemp("draft")
    head = tiny.make_head(folder / "head", seed=10 + request.param)
    return DraftCase(folder, tiny_target, head, shape, vocab, opset)


def test_the_same_tree_as_the_plain_arithmetic(case: DraftCase) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(seed=st.integers(0, 10**6), rows=st.integers(1, 7), padding=st.integers(0, 6), past=st.integers(0, 40))
    def run(seed: int, rows: int, padding: int, past: int) -> None:
        case.check(seed, rows, min(padding, rows - 1), past, capacity=48)

    run()


@pytest.mark.slow
def test_the_two_pairings_differ(tmp_path: Path, tiny_target: Path) -> None:
    """A control: with the other pairing in the plain twin, the comparison must fail."""
    case = DraftCase(tmp_path, tiny_target, tiny.make_head(tmp_path / "head", seed=3), TreeShape(5, 8, 31))
    case.tree = TreeShape(5, 8, 31, "published")
    with pytest.raises(AssertionError):
        for seed in range(5):
            case.check(seed, 3, 0, 10, 16)


@pytest.mark.slow
@pytest.mark.parametrize("third", [False, True])
def test_a_jakiro_star_head_drafts_its_own_tree(tmp_path: Path, tiny_target: Path, third: bool) -> None:
    head = tiny.make_star_head(tmp_path / "head", third, seed=4)
    case = DraftCase(tmp_path, tiny_target, head, StaticPaths(PlainStar.TREE))
    for seed in range(4):
        case.check(seed, 1 + seed % 4, seed % 2 if seed % 4 else 0, 5 * seed, 32)


@pytest.mark.parametrize(
    ("tree", "vocab", "settings_"),
    [
        (TreeShape(4, 4, 20, parallel=False), None, {}),
        (TreeShape(1, 4, 8, parallel=False), 64, {"bias": False}),
        (TreeShape(3, 3, 15, parallel=False), 100, {"biases": True, "rope_theta": 500000.0}),
    ],
)
def test_an_eagle_head_drafts_the_tree_of_the_plain_arithmetic(
    tmp_path: Path, tiny_target: Path, tree: TreeShape, vocab: int | None, settings_: dict[str, Any]
) -> None:
    head = tiny.make_eagle_head(tmp_path / "head", seed=5, **settings_)
    case = DraftCase(tmp_path, tiny_target, head, tree, vocab)
    case.plain.theta = settings_.get("rope_theta", 10000.0)
    for seed in range(8):
        case.check(seed, 1 + seed % 4, seed % 2 if seed % 4 else 0, 5 * seed, 48)


EAGLE3 = [
    pytest.param("SafeAILab", TreeShape(3, 4, 20, parallel=False), None, {}, id="SafeAILab"),
    pytest.param("SpecForge", TreeShape(2, 3, 10, parallel=False), None, {}, id="SpecForge 3.1"),
    pytest.param("AngelSlim", TreeShape(1, 4, 8, parallel=False), 64, {"rope_theta": 500000.0, "biases": True}, id="AngelSlim"),
    pytest.param("ModelOpt", TreeShape(2, 3, 12, parallel=False), None, {"layers": 2}, id="ModelOpt, two layers"),
    pytest.param("speculators", TreeShape(3, 3, 12, parallel=False), None, {}, id="speculators"),
    pytest.param("DeepSpec", TreeShape(2, 4, 12, parallel=False), 100, {}, id="DeepSpec"),
    pytest.param("SafeAILab", TreeShape(2, 3, 9, parallel=False), None, {"hidden_size": 64, "target_hidden_size": 48}, id="wide"),
]


@pytest.mark.parametrize(("dialect", "tree", "vocab", "settings_"), EAGLE3)
def test_an_eagle_3_head_drafts_the_tree_of_the_plain_arithmetic(
    tmp_path: Path, target_of_7: Path, dialect: str, tree: TreeShape, vocab: int | None, settings_: dict[str, Any]
) -> None:
    head = tiny.make_eagle3_head(tmp_path / "head", dialect, seed=6, **settings_)
    case = DraftCase(tmp_path, target_of_7, head, tree, vocab)
    case.plain.theta = settings_.get("rope_theta", 10000.0)
    for seed in range(6):
        case.check(seed, 1 + seed % 4, seed % 2 if seed % 4 else 0, 5 * seed, 48)


@pytest.mark.parametrize(("tree", "vocab"), [(TreeShape(3, 4, 20), None), (TreeShape(1, 4, 8), 64), (TreeShape(2, 3, 9), 100)])
def test_a_jakiro_3_head_drafts_the_tree_of_the_plain_arithmetic(
    tmp_path: Path, target_of_7: Path, tree: TreeShape, vocab: int | None
) -> None:
    case = DraftCase(tmp_path, target_of_7, tiny.make_jakiro3_head(tmp_path / "head", seed=6), tree, vocab)
    for seed in range(6):
        case.check(seed, 1 + seed % 4, seed % 2 if seed % 4 else 0, 5 * seed, 48)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["midlayer.mlp_moe.gate.weight", "midlayer.mlp_moe.experts.1.up_proj.weight", "norm.weight"])
def test_what_a_jakiro_3_head_computes_is_all_compared(tmp_path: Path, target_of_7: Path, change: str) -> None:
    """A control: with one of its parts changed in the plain twin, the comparison must fail."""
    case = DraftCase(tmp_path, target_of_7, tiny.make_jakiro3_head(tmp_path / "head", seed=6), TreeShape(3, 4, 20))
    case.plain.w[change] = case.plain.w[change].roll(1, 0)
    with pytest.raises(AssertionError):
        for seed in range(5):
            case.check(seed, 3, 0, 10, 16)


GUMIHO = [
    (TreeShape(5, 4, 24), None, {}),
    (TreeShape(2, 3, 12), 100, {"nested": True}),
    (TreeShape(1, 4, 9), None, {}),
    (TreeShape(4, 3, 16, "published"), None, {}),
]


@pytest.mark.parametrize(("tree", "vocab", "made"), GUMIHO, ids=["deep", "two levels", "no guess", "published pairing"])
def test_a_gumiho_head_drafts_the_tree_of_the_plain_arithmetic(
    tmp_path: Path, tiny_target: Path, tree: TreeShape, vocab: int | None, made: dict[str, Any]
) -> None:
    case = DraftCase(tmp_path, tiny_target, tiny.make_gumiho_head(tmp_path / "head", seed=7, **made), tree, vocab)
    case.plain.w = {name.replace("mlp.mlp.", "mlp."): value for name, value in case.plain.w.items()}
    for seed in range(6):
        case.check(seed, 1 + seed % 4, seed % 2 if seed % 4 else 0, 5 * seed, 48)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["mlp.0.0.linear.weight", "mlp.1.2.linear.bias", "layers.1.input_layernorm.weight", "pairing"])
def test_what_a_gumiho_head_computes_is_all_compared(tmp_path: Path, tiny_target: Path, change: str) -> None:
    """A control: with one of its parts changed in the plain twin, the comparison must fail."""
    case = DraftCase(tmp_path, tiny_target, tiny.make_gumiho_head(tmp_path / "head", seed=7), TreeShape(5, 4, 24))
    if change == "pairing":
        case.tree = TreeShape(5, 4, 24, "published")
    else:
        case.plain.w[change] = case.plain.w[change].roll(1, 0)
    with pytest.raises(AssertionError):
        for seed in range(5):
            case.check(seed, 3, 0, 10, 16)


@pytest.fixture(scope="module")
def target_of_7(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_target(tmp_path_factory.mktemp("target"), layers=7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dialect", "change"),
    [
        *(("SpecForge", name) for name in ("fc_norm.1.weight", "norm.weight", "fc_norm", "norm_output", "theta")),
        *(("speculators", name) for name in ("input_norm.weight", "norm_before_residual", "layers.0.self_attn.q_norm.weight")),
        *(
            ("ModelOpt", name)
            for name in ("layers.0.hidden_norm.weight", "layers.0.input_layernorm.weight", "lm_head.weight", "d2t")
        ),
        *(("two", name) for name in ("layers.1.input_layernorm.weight", "layers.1.self_attn.k_proj.weight")),
    ],
)
def test_what_an_eagle_3_head_computes_is_all_compared(tmp_path: Path, target_of_7: Path, dialect: str, change: str) -> None:
    """A control: with one of its parts changed in the plain twin, the comparison must fail."""
    made = {"dialect": "ModelOpt", "layers": 2} if dialect == "two" else {"dialect": dialect}
    head = tiny.make_eagle3_head(tmp_path / "head", seed=6, **made)
    trees = {"SpecForge": (2, 3, 10), "speculators": (3, 3, 12)}  # those that are traced anyway
    case = DraftCase(tmp_path, target_of_7, head, TreeShape(*trees.get(dialect, (2, 3, 12)), parallel=False))
    if change == "theta":
        case.plain.theta = 500000.0
    elif change in case.plain.w:
        case.plain.w[change] = case.plain.w[change].roll(1, 0)
    else:
        case.plain.flags ^= {change}
    with pytest.raises(AssertionError):
        for seed in range(5):
            case.check(seed, 3, 0, 10, 16)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["layers.0.self_attn.k_proj.bias", "fc.bias", "layers.0.mlp.gate_proj.weight", "theta"])
def test_what_an_eagle_head_computes_is_all_compared(tmp_path: Path, tiny_target: Path, change: str) -> None:
    """A control: with one of its parts changed in the plain twin, the comparison must fail."""
    head = tiny.make_eagle_head(tmp_path / "head", seed=5, biases=True)
    case = DraftCase(tmp_path, tiny_target, head, TreeShape(3, 3, 15, parallel=False))
    if change == "theta":
        case.plain.theta = 500000.0
    else:
        case.plain.w[change] = case.plain.w[change].roll(1, 0)
    with pytest.raises(AssertionError):
        for seed in range(5):
            case.check(seed, 3, 0, 10, 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "tree"),
    [
        (tiny.make_head, StaticPaths([(0,), (1,), (0, 0), (0, 2), (1, 0), (0, 0, 1)])),
        (lambda folder: tiny.make_star_head(folder, False), TreeShape(2, 3, 10, parallel=False)),
        (tiny.make_eagle_head, StaticPaths(EAGLE_PATHS)),
        (tiny.make_gumiho_head, StaticPaths([(0,), (1,), (0, 0), (0, 2), (1, 0), (0, 0, 1)])),
    ],
    ids=["Jakiro along static paths", "Jakiro* with a beam", "EAGLE-1", "Gumiho along static paths"],
)
def test_the_kind_of_tree_does_not_depend_on_the_head(
    tmp_path: Path, tiny_target: Path, make: Callable[[Path], Path], tree: TreeShape | StaticPaths
) -> None:
    case = DraftCase(tmp_path, tiny_target, make(tmp_path / "head"), tree)
    for seed in range(4):
        case.check(seed, 1 + seed, seed // 2, 5 * seed, 32)
