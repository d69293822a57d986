"""Activation-aware scaling: nothing changes but the rounding, which loses less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import tiny
from jakiro_export.artifact.weights import Array
from jakiro_export.checkpoints.scaled import ScaledStore
from jakiro_export.checkpoints.target import load_target
from jakiro_export.errors import ExportError, UsageError
from jakiro_export.plan import ExportOptions
from jakiro_export.quantization import rounding
from jakiro_export.quantization.scaling import best_factor, exchanges, scale_by_activations
from jakiro_export.quantization.schemes import GPU_SCHEMES
from jakiro_export.verification.formats import dequantised, figures, rounded_rows
from jakiro_runtime import Engine

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    return tiny.make_target(tmp_path_factory.mktemp("scaling") / "target", layers=2, **wide)


def error(x: np.ndarray, matrix: np.ndarray, factor: np.ndarray) -> float:
    made = rounding.Rounding(Array(matrix * factor), rounding.INT4, 32, np.dtype(np.float16))
    steps = np.concatenate(list(made.steps())).astype(np.float32).reshape(len(matrix), -1, 32)
    found = (steps * made.scales.astype(np.float32)[..., None]).reshape(matrix.shape)
    return float((((x / factor) @ found.T - x @ matrix.T) ** 2).sum())


def test_outliers_among_inputs_are_given_more_steps() -> None:
    x = RANDOM.standard_normal((64, 96)).astype(np.float32)
    x[:, [3, 40, 77]] *= 40
    matrix = RANDOM.standard_normal((48, 96)).astype(np.float32)
    factor = best_factor(x, matrix, 32)
    assert factor[[3, 40, 77]].min() > 1.5 * np.median(factor)
    assert error(x, matrix, factor) < 0.6 * error(x, matrix, np.ones(96, np.float32))


def test_a_model_with_exchanged_factors_computes_the_same(folder: Path) -> None:
    target, tokens = load_target(folder, "x"), torch.arange(3, 40)[None]
    model = target.model()
    with torch.no_grad():
        before = model(input_ids=tokens).logits
    scale_by_activations(target)
    assert isinstance(target.store, ScaledStore)
    changed = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rows = target.store.rows(target.tensor_name(name), 0, parameter.shape[0]).astype(np.float32)
            changed += not np.array_equal(rows, parameter.numpy())
            parameter.copy_(torch.from_numpy(rows))
        after = model(input_ids=tokens).logits
    assert changed == 2 * (2 + 3 + 2 + 1)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_what_it_is_not_for(folder: Path) -> None:
    with pytest.raises(ExportError, match=r"no model.layers.0.input_layernorm.weight"):
        list(exchanges(1, ["model.layers.0.mlp.up_proj.weight"]))
    with pytest.raises(UsageError, match="--scaling is for --precision w4a16"):
        ExportOptions("d", "t", Path("o"), precision="w8a8", scaling=True)


@pytest.mark.parametrize("name", ["w4", "w8a16", "fp8a16", "nvfp4a16"])
def test_the_tables_numbers_are_those_of_the_graph(name: str) -> None:
    matrix = RANDOM.standard_normal((32, 64)).astype(np.float16)
    found = dequantised(GPU_SCHEMES[name].initializers(Array(matrix), "m"))
    assert 0 < np.linalg.norm(found - matrix) < 0.13 * np.linalg.norm(matrix.astype(np.float32))


def test_activations_are_rounded_where_a_scheme_does() -> None:
    x = torch.from_numpy(RANDOM.standard_normal((3, 32)).astype(np.float32))
    assert rounded_rows("w4") is None
    losses = []
    for name in ("w8a8", "fp8", "nvfp4"):
        change = rounded_rows(name)
        assert change is not None
        losses.append(float((change(x) - x).norm() / x.norm()))
    assert 0 < losses[0] < losses[1] < losses[2] < 0.15


def test_the_target_is_as_before_after_a_row_of_the_table(folder: Path) -> None:
    target, tokens = load_target(folder, "x"), np.arange(3, 30)
    exact, _ = figures(target, None, tokens)
    rounded, bits = figures(target, GPU_SCHEMES["w4g32"], tokens)
    assert bits == 4.5
    assert not np.allclose(rounded, exact)
    np.testing.assert_array_equal(figures(target, None, tokens)[0], exact)


@pytest.mark.slow
def test_an_engine_of_a_scaled_target(folder: Path, tmp_path: Path) -> None:
    """Norms' gains are divided, and no weight's range is cut."""
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    head = tiny.make_head(tmp_path / "head", **wide)
    out = tiny.make_engine(tmp_path / "e", folder, head, precision="w4a16", scaling=True, verify=False)
    assert Engine.open(out).generate("hello", max_new_tokens=6)
    names = {weight.name: weight for weight in onnx.load(out / "target.onnx").graph.initializer}
    gain = onnx.numpy_helper.to_array(names["model.model.layers.0.input_layernorm.weight"])
    assert np.ptp(gain) > 0.01
