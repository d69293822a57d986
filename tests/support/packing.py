"""Quantised checkpoints made of a plain one, packed number by number as the formats' descriptions say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, np.ndarray]
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


def words(numbers: np.ndarray, places: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """Rows of numbers from 0 to 15 as 32-bit words of eight; nibble n holds the number at `places[n]`."""
    packed = np.zeros((len(numbers), numbers.shape[1] // 8), np.uint32)
    for row, column in np.ndindex(*packed.shape):
        for nibble, place in enumerate(places):
            packed[row, column] |= np.uint32(int(numbers[row, 8 * column + place]) << 4 * nibble)
    return packed.view(np.int32)


def gptq(steps: np.ndarray, scales: np.ndarray, zeros: np.ndarray, index: np.ndarray) -> Tensors:
    """steps [out, in] and zeros [out, groups] from 0 to 15; index: the group of each input."""
    packed = {"qweight": words(steps).T.copy(), "qzeros": words(zeros.T - 1)}
    return packed | {"scales": scales.T.astype(np.float16), "g_idx": index.astype(np.int32)}


def awq(steps: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> Tensors:
    """The same in AWQ's order."""
    return {
        "qweight": words(steps.T, AWQ_PLACES), "qzeros": words(zeros.T, AWQ_PLACES), "scales": scales.T.astype(np.float16)
    }  # fmt: skip


def compressed_int4(steps: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> Tensors:
    """The same as compressed-tensors packs it: along the inputs, zero points along the outputs."""
    shape = np.array(steps.shape, np.int64)
    return {
        "weight_packed": words(steps), "weight_scale": scales, "weight_zero_point": words(zeros.T).T.copy(), "weight_shape": shape
    }  # fmt: skip


def pairs(steps: np.ndarray) -> np.ndarray:
    """Codes from 0 to 15 two a byte along the last axis, the first lower."""
    packed: np.ndarray = (steps[..., ::2] | steps[..., 1::2] << 4).astype(np.uint8)
    return packed


def as_torch(value: np.ndarray) -> torch.Tensor:
    if value.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(value.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(value)


def quantise_checkpoint(
    folder: Path, config: dict[str, Any], pack: Callable[[np.random.Generator, tuple[int, int]], tuple[Tensors, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Replace the matrices of a transformers folder's layers; `pack` makes one of a shape: its tensors and what they stand for.

    Returns:
        what each stands for, by its plain name
    """
    random, file = np.random.default_rng(0), folder / "model.safetensors"
    tensors, made = load_file(file), {}
    for name in [name for name in tensors if ".layers." in name and tensors[name].ndim == 2]:
        parts, made[name] = pack(random, tuple(tensors.pop(name).shape))
        base = name.removesuffix(".weight")
        tensors |= {f"{base}.{tail}": as_torch(np.ascontiguousarray(value)) for tail, value in parts.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": config}))
    return made
