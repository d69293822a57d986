"""Schemes for GPUs: standard nodes compute what the rounded numbers say, and packed checkpoints are taken as they are."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from ir_graphs import operators, parse, run
from jakiro_export.artifact.weights import Array, LazyWeight, Stacked, Stored, Transposed, Weight
from jakiro_export.artifact.writer import DataFiles, save
from jakiro_export.checkpoints import quantised
from jakiro_export.checkpoints.quantised import Packed
from jakiro_export.errors import UsageError
from jakiro_export.passes.quantize_matmuls import quantize_matmuls
from jakiro_export.quantization import rounding
from jakiro_export.quantization.recipe import DRAFT_PROJECTION, RECIPES, Recipe, Rule, read_recipe
from jakiro_export.quantization.schemes import GPU_SCHEMES

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((48, 128)).astype(np.float16)  # [out, in]
X = RANDOM.standard_normal((2, 5, 128)).astype(np.float16)


def quantised_model(name: str, matrix: Weight) -> ir.Model:
    model = parse(f"g (float16[2, rows, 128] x, float16[128, {matrix.shape[0]}] w) => (float16[2, rows, {matrix.shape[0]}] y) "
                  "{ y = MatMul(x, w) }", w=Transposed(matrix))  # fmt: skip
    quantize_matmuls(model, Recipe((Rule("w", (name,)),), gpu=True))
    return model


def initial(model: ir.Model, end: str) -> np.ndarray:
    found = next(value for name, value in model.graph.initializers.items() if name.endswith(end))
    assert found.const_value is not None
    return found.const_value.numpy()


def dequantised(name: str, model: ir.Model) -> np.ndarray:
    """[in, out] in float64, from the tensors that the graph has."""
    if name.startswith("w4"):
        steps, scales = initial(model, ".int4").astype(np.float64), initial(model, ".scales").astype(np.float64)
        found = steps * np.repeat(scales, len(steps) // len(scales), 0)
        offsets = [key for key in model.graph.initializers if key.endswith(".offsets")]
        if offsets:
            found += np.repeat(initial(model, ".offsets").astype(np.float64), len(steps) // len(scales), 0)
        return found
    if name.startswith("nvfp4"):
        packed = initial(model, ".fp4")
        steps = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1).view(ml_dtypes.float4_e2m1fn)
        scales = initial(model, ".scales").astype(np.float64) * np.float64(initial(model, ".shared"))
        return steps.astype(np.float64) * np.repeat(scales, 16, 0)
    steps = initial(model, ".fp8" if name.startswith("fp8") else ".int8").astype(np.float64)
    return steps * initial(model, ".scales").astype(np.float64)


WEIGHT_ERROR = {
    "w4": 0.13,
    "w4g32": 0.11,
    "w4-nearest": 0.14,
    "w4z": 0.11,
    "w4zg32": 0.09,
    "w8a16": 0.009,
    "fp8a16": 0.04,
    "nvfp4a16": 0.11,
}
ACTIVATION_ERROR = {"w8a8": 0.012, "fp8": 0.05, "nvfp4": 0.16}


@pytest.mark.parametrize("name", WEIGHT_ERROR)
def test_a_matmul_is_that_of_the_rounded_weights(name: str) -> None:
    model = quantised_model(name, Array(W))
    matrix = dequantised(name, model)
    found = run(model, x=X)[0].astype(np.float64)
    np.testing.assert_allclose(found, X.astype(np.float64) @ matrix, atol=0.06)
    error = np.linalg.norm(matrix - W.T) / np.linalg.norm(W)
    assert 0 < error < WEIGHT_ERROR[name]


@pytest.mark.parametrize("name", ACTIVATION_ERROR)
def test_activations_are_rounded_by_row(name: str) -> None:
    """A row's error follows its own size, however large its neighbours are; and nothing overflows."""
    rows = X * np.float16(10.0) ** np.arange(-2, 3, dtype=np.float16)[None, :, None]
    model = quantised_model(name, Array(W))
    exact = rows.astype(np.float64) @ dequantised(name, model)
    found = run(model, x=rows)[0].astype(np.float64)
    error = np.linalg.norm(found - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert error.max() < ACTIVATION_ERROR[name]
    assert error.min() > 1e-4, "they are rounded"
    assert not run(model, x=np.zeros_like(rows))[0].any()


def test_int8_activations_are_whole_numbers_of_their_rows_step() -> None:
    """What the kernel of a GPU adds are integers: the product is that of integers, to half precision."""
    model = quantised_model("w8a8", Array(W))
    rows = X.astype(np.float64)
    magnitude = np.abs(rows).max(-1, keepdims=True)
    steps = np.rint((X / np.abs(X).max(-1, keepdims=True)).astype(np.float64) / np.float64(np.float16(1 / 127))).clip(-128, 127)
    exact = (steps @ initial(model, ".int8").astype(np.float64)) * initial(model, ".scales") * magnitude / 127
    np.testing.assert_allclose(run(model, x=X)[0], exact, rtol=4e-3, atol=0.1)


def test_the_search_is_never_worse_than_the_largest_magnitude() -> None:
    rows = RANDOM.standard_t(3, (64, 256)).astype(np.float16)
    errors = {}
    for search in (True, False):
        made = rounding.Rounding(Array(rows), rounding.INT4, 64, rows.dtype, search)
        steps = np.concatenate(list(made.steps())).astype(np.float64).reshape(64, -1, 64)
        errors[search] = ((steps * made.scales.astype(np.float64)[..., None] - rows.reshape(64, -1, 64)) ** 2).sum(-1)
    assert (errors[True] <= errors[False] * (1 + 1e-5)).all()
    assert errors[True].sum() < 0.9 * errors[False].sum()


def test_numbers_that_are_there_already_are_found_again() -> None:
    steps = RANDOM.integers(-7, 8, (16, 64)).astype(np.int8)
    steps[:, ::32] = 7
    scales = np.float16(0.25) * (1 + np.arange(32, dtype=np.float16).reshape(16, 2))
    matrix = (steps.reshape(16, 2, 32) * scales[..., None]).reshape(16, 64).astype(np.float16)
    made = rounding.Rounding(Array(matrix), rounding.INT4, 32, matrix.dtype, search=True)
    np.testing.assert_array_equal(made.scales, scales)
    np.testing.assert_array_equal(np.concatenate(list(made.steps())).astype(np.int8), steps)


@pytest.mark.parametrize("kind", ["int4", "float4_e2m1fn"])
def test_half_bytes_are_written_as_onnx_has_them(kind: str, tmp_path: Path) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind))
    values = np.arange(-8, 8).astype(np.int8).astype(dtype) if kind == "int4" else np.arange(16, dtype=np.uint8).view(dtype)
    matrix = np.tile(values, (40, 64))[:, : 16 * 64].reshape(40, -1)  # too large to be kept inside the model
    value = ir.Value(name="w", shape=ir.Shape(matrix.shape), type=ir.TensorType(ir.DataType.from_numpy(dtype)))
    value.const_value = LazyWeight(Array(matrix), "w")
    turned = ir.Value(name="t", shape=ir.Shape(matrix.T.shape), type=value.type)
    turned.const_value = LazyWeight(Transposed(Array(matrix)), "t")
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=[value, turned], opset_imports={"": 23}, name="g"), ir_version=11)
    with DataFiles(tmp_path) as files:
        save(model, tmp_path / "m.onnx", files)
    loaded = onnx.load(tmp_path / "m.onnx")
    for tensor, expected in zip(loaded.graph.initializer, (matrix, matrix.T), strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).view(np.uint8) & 15, expected.view(np.uint8) & 15)


def packed_store(monkeypatch: pytest.MonkeyPatch, **parts: Packed) -> quantised.QuantisedStore:
    """A store that has these matrices, already unpacked."""
    store = quantised.QuantisedStore.__new__(quantised.QuantisedStore)
    monkeypatch.setattr(store, "_packed", {name: each.shape for name, each in parts.items()}, raising=False)
    monkeypatch.setattr(store, "_plain", {}, raising=False)
    monkeypatch.setattr(store, "_unpack", parts.__getitem__, raising=False)
    return store


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("group", [32, 128])
def test_a_checkpoints_int4_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch, group: int, order: bool, zeros: bool) -> None:
    """Two stacked parts, as projections of one input are."""
    permutation = RANDOM.permutation(128) if order else None

    def part(rows: int) -> Packed:
        steps = RANDOM.integers(-8, 8, (rows, 128)).astype(np.int8)
        scales = RANDOM.uniform(0.01, 0.1, (rows, 128 // group)).astype(np.float16).astype(np.float32)
        points = RANDOM.integers(-3, 4, scales.shape).astype(np.int8) if zeros else None
        return Packed("int4", steps, scales, points, permutation)

    parts = {"a": part(16), "b": part(8)}
    store = packed_store(monkeypatch, **parts)
    matrix = Stacked(tuple(Stored(store, name, np.dtype(np.float16)) for name in parts))
    model = quantised_model("w4", matrix)
    assert ("Gather" in operators(model)) == order
    assert operators(model).count("MatMul") == 1 + zeros
    np.testing.assert_array_equal(
        initial(model, ".int4").astype(np.int8).T, np.concatenate([each.steps for each in parts.values()])
    )
    exact = X.astype(np.float64) @ np.concatenate([each.values() for each in parts.values()]).T
    np.testing.assert_allclose(run(model, x=X)[0], exact, atol=0.05)


def test_parts_with_orders_of_their_own_are_rounded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        name: Packed(
            "int4",
            RANDOM.integers(-8, 8, (8, 128)).astype(np.int8),
            np.full((8, 1), 0.1, np.float32),
            None,
            RANDOM.permutation(128),
        )
        for name, order in (("a", RANDOM.permutation(128)), ("b", RANDOM.permutation(128)))
    }
    matrix = Stacked(tuple(Stored(packed_store(monkeypatch, **parts), name, np.dtype(np.float16)) for name in parts))
    model = quantised_model("w4", matrix)
    assert "Gather" not in operators(model)
    exact = X.astype(np.float64) @ np.concatenate([each.values() for each in parts.values()]).T
    assert np.abs(run(model, x=X)[0] - exact).mean() < 0.15 * np.abs(exact).mean()


def test_which_matrices_the_recipes_for_gpus_round() -> None:
    def scheme(precision: str, name: str, *shape: int, logits: tuple[str, ...] = ("lm_head",)) -> str | None:
        found = RECIPES[precision].scheme(name, shape, logits)
        return found.name if found is not None else None

    assert scheme("w4a16", "model.layers.0.mlp.down_proj.weight", 64, 128) == "w4"
    assert scheme("w4a16", "model.layers.0.mlp.down_proj.weight", 64, 48) == "w8a16", "no whole groups"
    assert scheme("w4a16", "lm_head", 320, 128) == "w8a16"
    assert scheme("w4a16", DRAFT_PROJECTION, 320, 128, logits=(DRAFT_PROJECTION,)) == "w4"
    assert scheme("nvfp4", "head.router.weight", 4, 64) is None
    assert all(name in GPU_SCHEMES for each in RECIPES.values() if each.gpu for rule in each.rules for name in rule.schemes)


def test_a_recipe_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    rules = [
        {"matrices": "*.layers.0.*", "schemes": []},
        {"matrices": "logits", "schemes": ["w8a16"]},
        {"matrices": "*", "schemes": ["w4g64"]},
    ]
    file.write_text(json.dumps({"rules": rules}))
    recipe = read_recipe(file, gpu=True)
    assert recipe.scheme("a.layers.0.b", (64, 64)) is None
    found = [recipe.scheme(name, (64, 64), ("out", DRAFT_PROJECTION)) for name in ("out", DRAFT_PROJECTION, "a.layers.10.b")]
    assert [each.name for each in found if each is not None] == ["w8a16", "w8a16", "w4g64"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "cannot be read"),
        ("[]", "is not an object"),
        ('{"rules": [], "more": 1}', "is not an object"),
        ('{"rules": [{"matrices": "*"}]}', "Rule 0"),
        ('{"rules": [{"matrices": "*", "schemes": ["int4"]}]}', "'int4'; for this precision there are w4"),
    ],
)
def test_recipes_that_are_none(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError, match=word):
        read_recipe(tmp_path / "r.json", gpu=True)


def test_onnx_runtime_runs_them_without_anything_of_ours() -> None:
    model = ir.to_proto(quantised_model("w4", Array(W)))
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_q4_1_files_numbers_are_found_again() -> None:
    import dequantize

    matrix = dequantize.int4(RANDOM.standard_normal((16, 64)).astype(np.float32))
    found = quantised_model("w4zg32", Array(np.tile(matrix, (1, 2)).astype(np.float32)))
    assert np.abs(dequantised("w4zg32", found).T[:, :64] - matrix).max() < 2e-3 * np.abs(matrix).max()
