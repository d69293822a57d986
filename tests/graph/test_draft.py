"""The draft graph against the paper's arithmetic, written a second time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny
from jakiro_export.artifact.writer import DataFiles, save
from jakiro_export.checkpoints.head import load_head
from jakiro_export.checkpoints.target import load_target
from jakiro_export.graphs import GraphOptions, draft_graph, draft_token_map
from jakiro_export.heads.jakiro import TreeShape
from reference_draft import PlainDraft, PlainStar

SHAPES = [
    (TreeShape(5, 8, 31), None),
    (TreeShape(2, 3, 12, "published"), None),
    (TreeShape(3, 4, 12, "published"), 100),
    (TreeShape(1, 5, 9), 64),
    (TreeShape(4, 2, 18), None),
    (TreeShape(2, 3, 14, parallel=False), 80),
]


class DraftCase:
    """One exported draft graph, its plain twin, and how to run both on the same inputs."""

    def __init__(
        self, folder: Path, target: Path, head: Path, shape: TreeShape, vocab: int | None = None, opset: int = 23
    ) -> None:
        checkpoint, loaded = load_head(head, "head"), load_target(target, "target")
        options = GraphOptions("fp32", "fp32", True, opset, shape, vocab)
        with DataFiles(folder) as files:
            save(draft_graph(checkpoint, loaded, options, {}), folder / "draft.onnx", files)
        self.session = onnxruntime.InferenceSession(str(folder / "draft.onnx"))
        embedding = load_file(target / "model.safetensors")["model.embed_tokens.weight"]
        kind = PlainStar if checkpoint.config.star else PlainDraft
        self.plain = kind(load_file(head / "model.safetensors"), embedding, 6, 2, 10000.0)
        self.shape, token_map = shape, draft_token_map(checkpoint, vocab)
        self.vocab = None if token_map is None else token_map.tolist()

    def check(self, seed: int, rows: int, padding: int, past: int, capacity: int) -> None:
        rng = np.random.default_rng(seed)
        real = rows - padding
        tokens = rng.integers(0, tiny.VOCAB, rows)
        features = rng.standard_normal((rows, 48)).astype(np.float32)
        cache = rng.standard_normal((2, 1, 2, capacity, 8)).astype(np.float32)  # slots beyond `past` hold rubbish
        ours = self.session.run(
            ["tree_tokens", "tree_parents", "tree_scores"],
            {
                "input_ids": tokens[None],
                "hidden_states": features[None],
                "position_ids": np.arange(past, past + rows)[None],
                "last_row": np.array([real - 1]),
                "past_length": np.array([past]),
                "past_key": cache[0],
                "past_value": cache[1],
            },
        )
        keys = [(torch.from_numpy(cache[0, 0, :, n]).double(), torch.from_numpy(cache[1, 0, :, n]).double())
                for n in range(past)]  # fmt: skip
        given = (tokens[:real].tolist(), torch.from_numpy(features[:real]), list(range(past, past + real)), keys)
        if isinstance(self.plain, PlainStar):
            plain = self.plain.star_tree(*given)
        else:
            s = self.shape
            plain = self.plain.tree(*given, s.depth, s.top_k, s.nodes, s.pairing, self.vocab, s.parallel)
        np.testing.assert_allclose(ours[2][0], [node.score for node in plain], atol=2e-4)
        assert ours[0][0].tolist() == [node.token for node in plain]
        assert ours[1][0].tolist() == [node.parent for node in plain]


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.slow if n in (0, 4) else ()) for n in range(len(SHAPES))],
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


def test_the_two_pairings_differ(tmp_path: Path, tiny_target: Path) -> None:
    """A control: with the other pairing in the plain twin, the comparison must fail."""
    case = DraftCase(tmp_path, tiny_target, tiny.make_head(tmp_path / "head", seed=3), TreeShape(3, 4, 40))
    case.shape = TreeShape(3, 4, 40, "published")
    with pytest.raises(AssertionError):
        for seed in range(5):
            case.check(seed, 3, 0, 10, 16)


@pytest.mark.slow
@pytest.mark.parametrize("third", [False, True])
def test_a_jakiro_star_head_drafts_its_own_tree(tmp_path: Path, tiny_target: Path, third: bool) -> None:
    head = tiny.make_star_head(tmp_path / "head", third, seed=4)
    case = DraftCase(tmp_path, tiny_target, head, TreeShape())
    for seed in range(6):
        case.check(seed, 1 + seed % 4, seed % 2 if seed % 4 else 0, 5 * seed, 32)
