"""Quantised checkpoints: every layout is unpacked to the bit, what is not read is refused, and w4a16 keeps the numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

import packing
import tiny
from jakiro_export.checkpoints import quantised
from jakiro_export.checkpoints.quantised import QuantisedStore
from jakiro_export.checkpoints.target import load_target
from jakiro_export.errors import ExportError
from jakiro_runtime.backends.evaluate import GraphCall, causal_mask
from jakiro_runtime.backends.onnxruntime import open_graph
from jakiro_runtime.format.manifest import Manifest

GROUP = 32
Shape = tuple[int, int]
Made = tuple[packing.Tensors, np.ndarray]
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


def numbers(random: np.random.Generator, shape: Shape, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    groups = (shape[0], shape[1] // GROUP)
    scales = random.uniform(0.01, 0.04, groups).astype(np.float16)
    zeros = np.full(groups, 8) if symmetric else random.integers(1, 16, groups)
    return random.integers(0, 16, shape), scales.astype(np.float32), zeros


def values(steps: np.ndarray, scales: np.ndarray, zeros: np.ndarray, index: np.ndarray) -> np.ndarray:
    return ((steps - zeros[:, index]) * scales[:, index]).astype(np.float32)


def gptq(symmetric: bool, order: bool) -> Callable[[np.random.Generator, Shape], Made]:
    permuted = {width: np.random.default_rng(width).permutation(width) // GROUP for width in (64, 128)}

    def make(random: np.random.Generator, shape: Shape) -> Made:
        found = numbers(random, shape, symmetric)
        index = permuted[shape[1]] if order else np.arange(shape[1]) // GROUP
        return packing.gptq(*found, index), values(*found, index)

    return make


def four_bits(pack: Callable[..., packing.Tensors]) -> Callable[[np.random.Generator, Shape], Made]:
    def make(random: np.random.Generator, shape: Shape) -> Made:
        found = numbers(random, shape, False)
        return pack(*found), values(*found, np.arange(shape[1]) // GROUP)

    return make


def int8(random: np.random.Generator, shape: Shape) -> Made:
    steps, scales = (
        random.integers(-127, 128, shape).astype(np.int8),
        random.uniform(1e-3, 4e-3, (shape[0], 1)).astype(np.float32),
    )
    return {"weight": steps, "weight_scale": scales}, steps * scales


def fp8(random: np.random.Generator, shape: Shape) -> Made:
    steps = random.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    scale = np.array(0.0625, np.float32)
    return {"weight": steps, "weight_scale": scale, "input_scale": scale.copy()}, steps.astype(np.float32) * scale


def fp8_blocks(random: np.random.Generator, shape: Shape) -> Made:
    steps = random.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
    scales = random.uniform(0.05, 0.1, (shape[0] // 32, shape[1] // 32)).astype(np.float32)
    return {"weight": steps, "weight_scale_inv": scales}, steps.astype(np.float32) * np.kron(
        scales, np.ones((32, 32), np.float32)
    )


def fp4(divide: bool) -> Callable[[np.random.Generator, Shape], Made]:
    def make(random: np.random.Generator, shape: Shape) -> Made:
        codes, scales = (
            random.integers(0, 16, shape),
            random.uniform(20, 400, (shape[0], shape[1] // 16)).astype(ml_dtypes.float8_e4m3fn),
        )
        shared = np.float32(2.0**-13)
        steps = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        found = {"weight_scale": scales, "weight_packed" if divide else "weight": packing.pairs(codes)}
        found["weight_global_scale" if divide else "weight_scale_2"] = np.array([1 / shared] if divide else shared, np.float32)
        return found, steps * np.repeat(scales.astype(np.float32) * shared, 16, 1)

    return make


def modelopt_int4(random: np.random.Generator, shape: Shape) -> Made:
    steps, scales, _ = numbers(random, shape, True)
    codes = (steps - 8) % 16
    return {"weight": packing.pairs(codes.T).T.copy(), "weight_scale": scales}, (
        (steps - 8) * np.repeat(scales, GROUP, 1)
    ).astype(np.float32)


def compressed(form: str, bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "strategy": strategy, "type": "int", **more}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
LAYOUTS: dict[str, tuple[dict[str, Any], Callable[[np.random.Generator, Shape], Made], str]] = {
    "gptq": (GPTQ, gptq(True, False), "GPTQ, int4 in groups of 32, symmetric"),
    "gptq-asymmetric": (GPTQ, gptq(False, False), "GPTQ, int4 in groups of 32, asymmetric"),
    "gptq-act-order": ({**GPTQ, "desc_act": True}, gptq(True, True), "GPTQ, int4 in groups of 32, symmetric, act-order"),
    "awq": (AWQ, four_bits(packing.awq), "AWQ, int4 in groups of 32, asymmetric"),
    "compressed-int4": (compressed("pack-quantized", 4, "group"), four_bits(packing.compressed_int4),
                        "compressed-tensors, int4 in groups of 32, asymmetric"),
    "compressed-int8": (compressed("int-quantized", 8, "channel"), int8, "compressed-tensors, int8"),
    "compressed-fp8": (compressed("float-quantized", 8, "tensor"), fp8, "compressed-tensors, fp8"),
    "compressed-nvfp4": (compressed("nvfp4-pack-quantized", 4, "tensor_group"), fp4(True),
                         "compressed-tensors, fp4 in groups of 16"),
    "modelopt-fp8": ({**MODELOPT, "quant_algo": "FP8"}, fp8, "ModelOpt, fp8"),
    "modelopt-nvfp4": (MODELOPT, fp4(False), "ModelOpt, fp4 in groups of 16"),
    "modelopt-int4": ({**MODELOPT, "quant_algo": "W4A16_AWQ"}, modelopt_int4, "ModelOpt, int4 in groups of 32, symmetric"),
    "fp8-blocks": ({"quant_method": "fp8", "weight_block_size": [32, 32]}, fp8_blocks, "fp8 in blocks, fp8 in groups of 32"),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_target(tmp_path_factory.mktemp("plain") / "target", layers=2, **WIDE)


@pytest.fixture
def target(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "target"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_unpacked_to_the_bit(name: str, target: Path) -> None:
    config, pack, label = LAYOUTS[name]
    made = packing.quantise_checkpoint(target, config, pack)
    found = load_target(target, "x")
    assert isinstance(found.store, QuantisedStore)
    assert found.quantised == label
    assert set(found.store.names) == set(made)
    for matrix, expected in made.items():
        assert found.store.shapes()[matrix] == expected.shape
        np.testing.assert_array_equal(found.store.rows(matrix, 0, expected.shape[0]), expected)
        np.testing.assert_array_equal(found.store.rows(matrix, 3, 7), expected[3:7])
    own = {name: value.detach().numpy() for name, value in found.model().named_parameters()}
    np.testing.assert_array_equal(own["model.layers.1.mlp.up_proj.weight"], made["model.layers.1.mlp.up_proj.weight"])
    assert "model.embed_tokens.weight" in own


def test_modelopt_may_say_so_in_a_file_of_its_own(target: Path) -> None:
    config, pack, label = LAYOUTS["modelopt-nvfp4"]
    packing.quantise_checkpoint(target, config, pack)
    settings = json.loads((target / "config.json").read_text())
    del settings["quantization_config"]
    (target / "config.json").write_text(json.dumps(settings))
    (target / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4", "group_size": 16}}))
    assert load_target(target, "x").quantised == label


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "code book of its own"),
        ({"quant_method": "gptq", "bits": 3}, "GPTQ with 3 bits, where 4 are read"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'gemv'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "W4A8_AWQ, where FP8, NVFP4"),
        (compressed("marlin-24", 4, "group"), "in the format 'marlin-24'"),
        (compressed("int-quantized", 8, "group"), "in groups"),
        (compressed("pack-quantized", 8, "group"), "packed with"),
        ({"quant_method": "torchao"}, "torchao, which this exporter does not read"),
        ({"bits": 4}, "an unnamed method"),
    ],
)
def test_what_is_not_read_is_refused_in_a_sentence(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words) as raised:
        quantised.layout(config, Path("here"))
    assert str(raised.value).startswith("The checkpoint in here is quantised: ")
    assert "--precision quantises it" in str(raised.value)


@pytest.mark.parametrize(
    ("tail", "change", "words"),
    [
        ("scales", None, "lacks its tensor scales"),
        ("g_idx", lambda value: value * 0, "g_idx does not put 32 inputs"),
        ("scales", lambda value: value * float("nan"), "is damaged"),
        ("qzeros", lambda value: value[:, :1], "do not fit each other"),
        ("qweight", lambda value: value[0], "where a matrix is expected"),
    ],
)
def test_damaged_matrices_are_errors(target: Path, tail: str, change: Callable[[Any], Any] | None, words: str) -> None:
    config, pack, _ = LAYOUTS["gptq"]
    packing.quantise_checkpoint(target, config, pack)
    tensors, name = load_file(target / "model.safetensors"), f"model.layers.0.self_attn.q_proj.{tail}"
    value = tensors.pop(name)
    if change is not None:
        tensors[name] = change(value).contiguous()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=words):
        load_target(target, "x").store.rows("model.layers.0.self_attn.q_proj.weight", 0, 1)


def test_a_checkpoint_that_says_it_is_quantised_and_is_not(target: Path) -> None:
    settings = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**settings, "quantization_config": GPTQ}))
    with pytest.raises(ExportError, match="no matrix in it is"):
        load_target(target, "x")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gptq-act-order", pytest.param("awq", marks=pytest.mark.exhaustive),
                                  pytest.param("gptq", marks=pytest.mark.exhaustive)])  # fmt: skip
def test_w4a16_has_the_checkpoints_numbers(name: str, target: Path, tmp_path: Path) -> None:
    """Its graph differs from torch with the unpacked weights by half precision's rounding alone; rounded again it would not."""
    config, pack, _ = LAYOUTS[name]
    packing.quantise_checkpoint(target, config, pack)
    head = tiny.make_head(tmp_path / "head", **WIDE)
    out = tiny.make_engine(tmp_path / "e", target, head, precision="w4a16", verify=False)
    tokens = np.random.default_rng(0).integers(3, tiny.VOCAB, 24)
    import torch

    with torch.no_grad():
        expected = load_target(target, "x").model()(input_ids=torch.from_numpy(tokens)[None]).logits[0].numpy()
    graph = GraphCall(open_graph(out / "target.onnx"), Manifest.read(out).target_contract)
    rows = np.arange(len(tokens))[None]
    found = graph(input_ids=tokens[None], position_ids=rows, tree_mask=causal_mask(len(tokens)),
                  past_length=np.zeros(1, np.int64), logit_rows=rows, **graph.empty_cache(1, 64))["logits"][0]  # fmt: skip
    difference = np.abs(found - expected).max() / expected.std()
    assert difference < 0.1  # logits are in int8
    kinds = [node.op_type for node in onnx.load(out / "target.onnx", load_external_data=False).graph.node]
    assert kinds.count("DequantizeLinear") == 2 * 4 + 1
