"""EAGLE-3 heads of every dialect: recognised by their files, their layer numbers understood, their mistakes refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny
from answers import plain, run
from jakiro_export.artifact.writer import DataFiles, save
from jakiro_export.checkpoints.target import load_target
from jakiro_export.cli.inspect import main as inspect
from jakiro_export.errors import ExportError, UsageError
from jakiro_export.graphs import target_graph
from jakiro_export.heads.eagle3 import Eagle3Head
from jakiro_export.heads.registry import load_head
from jakiro_export.plan import ExportOptions, TargetPlan, make_plan
from jakiro_export.precisions import PRECISIONS
from jakiro_runtime import Engine, contract
from jakiro_runtime.backends.evaluate import GraphCall, causal_mask
from jakiro_runtime.backends.onnxruntime import open_graph
from jakiro_runtime.sampling import Sampling

PROMPT = list(range(20, 45))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_target(tmp_path_factory.mktemp("target"), layers=7, initializer_range=0.1)  # less chaotic in int8


def opened(folder: Path, dialect: str, **changes: Any) -> Eagle3Head:
    head = load_head(tiny.make_eagle3_head(folder / "head", dialect, **changes), "head")
    assert isinstance(head, Eagle3Head)
    return head


@pytest.mark.parametrize("dialect", tiny.EAGLE3_DIALECTS)
def test_a_head_says_whose_it_is_and_which_layers_it_reads(tmp_path: Path, dialect: str) -> None:
    head = opened(tmp_path, dialect)
    assert (head.variant, head.dialect) == ("eagle3", dialect)
    # a number means the input of that layer, or the output of it, which is the input of the next
    assert head.feature_layers(7) == ((2, 3, 4) if dialect == "SafeAILab" else (1, 3, 4))
    flags = {name for name, given in head.flags.items() if given}
    assert flags == {
        "SpecForge": {"own_projection", "fc_norm", "norm_output"},
        "speculators": {"own_projection", "norm_before_fc", "norm_before_residual", "qk_norm"},
        "DeepSpec": {"own_projection", "qk_norm"},
    }.get(dialect, {"own_projection"})


@pytest.mark.parametrize(("layers", "expected"), [(32, (2, 16, 29)), (36, (2, 18, 33)), (28, (2, 14, 25)), (6, (2, 3))])
def test_a_head_that_names_no_layers_reads_the_usual_ones(tmp_path: Path, layers: int, expected: tuple[int, ...]) -> None:
    head = opened(tmp_path, "SafeAILab")
    if len(expected) == 3:
        assert head.feature_layers(layers) == expected
    else:
        with pytest.raises(ExportError, match="names no layers, and a target of 6"):
            head.feature_layers(layers)


def test_a_head_without_a_rope_theta_has_the_base_10000_whatever_its_target_has(tmp_path: Path) -> None:
    own = opened(tmp_path / "own", "SafeAILab", rope_theta=500000.0).layer_weights(np.dtype(np.float32))
    absent = opened(tmp_path / "absent", "SafeAILab").layer_weights(np.dtype(np.float32))
    frequencies = [next(iter(weights["head.rotary.inv_freq"].panels())) for weights in (own, absent)]
    np.testing.assert_allclose(frequencies[0], 500000.0 ** -(np.arange(4) / 4), rtol=1e-5)
    np.testing.assert_allclose(frequencies[1], 10000.0 ** -(np.arange(4) / 4), rtol=1e-5)


def test_d2t_is_an_offset(tmp_path: Path) -> None:
    head = opened(tmp_path, "SafeAILab")
    tokens = head.token_map(None)
    assert tokens is not None
    assert tokens.tolist() == [token for token in range(tiny.VOCAB) if token % 3][:200]
    some = head.token_map(50)
    assert some is not None
    assert some.tolist() == tokens[:50].tolist()


@pytest.mark.parametrize(
    ("dialect", "changes", "message"),
    [
        ("ModelOpt", {"aux_hidden_state_layer_ids": [0, 2, 3]}, "contradicts itself"),
        ("ModelOpt", {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [3, 2, 0]}}, "ascending layer numbers"),
        ("ModelOpt", {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, "3"]}}, "a list of layer numbers"),
        ("ModelOpt", {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 3]}}, "fc reads 144 numbers"),
        ("ModelOpt", {"architectures": ["PEagleDraftModel"]}, "P-EAGLE"),
        ("speculators", {"speculators_model_type": "peagle"}, "P-EAGLE"),
        ("ModelOpt", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("ModelOpt", {"draft_vocab_size": 100}, "lm_head.weight has shape"),
        ("ModelOpt", {"norm_before_fc": True}, "lacks the tensor input_norm.weight"),
        ("ModelOpt", {"fc_norm": True}, "lacks the tensor fc_norm.0.weight"),
        ("ModelOpt", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rotary scaling 'dynamic'"),
    ],
)
def test_a_head_that_cannot_be_run_is_refused(tmp_path: Path, dialect: str, changes: dict[str, Any], message: str) -> None:
    head = tiny.make_eagle3_head(tmp_path / "head", dialect)
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ExportError, match=message):
        load_head(head, "head")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("d2t", lambda d2t: d2t + 200, "no map into the target's 320 tokens"),
        ("d2t", lambda d2t: d2t * 0 - 1, "no map"),
        ("d2t", lambda d2t: torch.where(torch.arange(200) == 5, -1, d2t), "no map"),
        ("d2t", None, "lacks the tensor d2t"),
        ("midlayer.hidden_norm.weight", None, "lacks the tensor midlayer.hidden_norm.weight"),
        ("fc.weight", lambda fc: fc[:, :96], r"fc.weight has shape \[48, 96\]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, name: str, change: Any, message: str) -> None:
    folder = tiny.make_eagle3_head(tmp_path / "head", "SafeAILab")
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors.pop(name)
    if change is not None:
        tensors[name] = change(tensor).contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ExportError, match=message):
        load_head(folder, "head")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 7]}}, "reads the input of layer 8, but the target has 7"),
        ({"vocab_size": 319}, "vocabulary 319, the target .* 320"),
        ({"target_hidden_size": 64, "hidden_size": 48}, "hidden size 64, the target .* 48"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sees 64 positions only"),
    ],
)
def test_a_head_for_another_target_is_refused(tmp_path: Path, target: Path, made: dict[str, Any], message: str) -> None:
    head = tiny.make_eagle3_head(tmp_path / "head", "ModelOpt", **made)
    with pytest.raises((ExportError, UsageError), match=message):
        make_plan(ExportOptions(str(head), str(target), tmp_path / "out"), load_target(target, "target"), load_head(head, "head"))


def test_inspect_says_what_it_is(tmp_path: Path) -> None:
    head = tiny.make_eagle3_head(tmp_path / "head", "speculators")
    result = CliRunner().invoke(inspect, [str(head), "--json"])
    found = json.loads(result.output)
    assert (found["family"], found["dialect"], found["flags"]["norm_before_residual"]) == ("eagle3", "speculators", True)
    assert found["reads"] == "the inputs of layers 1, 3, 4"
    assert found["target"].startswith("some/target, hidden size 48")


@pytest.mark.parametrize(("layers", "read"), [(7, (0, 3, 7)), (2, (0, 1, 2))], ids=["repeated layers", "all layers traced"])
def test_the_target_gives_the_states_that_transformers_has(tmp_path: Path, layers: int, read: tuple[int, ...]) -> None:
    folder = tiny.make_target(tmp_path / "target", layers=layers)
    plan = TargetPlan(load_target(folder, "target"), PRECISIONS["fp32"], "numerical", 23, None, None, read)
    with DataFiles(tmp_path) as files:
        save(target_graph(plan, {}), tmp_path / "target.onnx", files)
    graph = GraphCall(open_graph(tmp_path / "target.onnx"), contract.target(layers, 2, 8, 48, tiny.VOCAB, read))
    ids = np.array(PROMPT)[None]
    found = graph(
        input_ids=ids,
        position_ids=np.arange(ids.shape[1])[None],
        tree_mask=causal_mask(ids.shape[1]),
        past_length=np.zeros(1, np.int64),
        logit_rows=np.array([[0, 1]]),
        **graph.empty_cache(1, 32),
    )["aux_hidden_states"][0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        states = model(torch.from_numpy(ids), output_hidden_states=True).hidden_states
    for place, layer in enumerate(read):
        ours, theirs = torch.from_numpy(found[:, 48 * place : 48 * (place + 1)]), states[layer][0]
        if layer == layers:  # transformers gives the last one after the final norm
            ours = model.model.norm(ours)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("dialect", "precision", "made"),
    [
        ("ModelOpt", "fp32", {"layers": 2}),
        pytest.param("speculators", "int8", {}, marks=pytest.mark.slow),
        pytest.param("SafeAILab", "int4", {}, marks=pytest.mark.slow),
        pytest.param("DeepSpec", "fp16", {}, marks=pytest.mark.slow),
    ],
)
def test_speculation_with_it_changes_no_token(tmp_path: Path, target: Path, dialect: str, precision: str, made: Any) -> None:
    head = tiny.make_eagle3_head(tmp_path / "head", dialect, **made)
    engine = Engine.open(tiny.make_engine(tmp_path / "engine", target, head, precision=precision), "onnxruntime", threads=1)
    assert engine.manifest.draft.feature_layers == ([2, 3, 4] if dialect == "SafeAILab" else [1, 3, 4])
    for sampling in (None, Sampling(temperature=0.9, seed=3)):
        result = run(engine.session(), PROMPT, 24, sampling=sampling)
        assert result.tokens == plain(engine, PROMPT, 24, sampling=sampling).tokens
        assert result.stats is not None
        assert result.stats.rounds <= len(result.tokens)


def test_a_session_is_saved_with_the_states_of_all_layers(tmp_path: Path, target: Path) -> None:
    head = tiny.make_eagle3_head(tmp_path / "head", "ModelOpt", layers=2)
    engine = Engine.open(tiny.make_engine(tmp_path / "engine", target, head), "onnxruntime", threads=1)
    session = engine.session()
    first = run(session, PROMPT, 9).tokens
    session.save(tmp_path / "saved")
    again = engine.restore(tmp_path / "saved")
    assert run(session, [*PROMPT, *first], 9).tokens == run(again, [*PROMPT, *first], 9).tokens
    assert session.stats.rounds == again.stats.rounds
