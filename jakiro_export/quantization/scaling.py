"""Activation-aware scaling (AWQ, arXiv 2306.00978): inputs with large activations are given more of their matrices' steps.

A norm's gain is divided by a factor for each input and the columns of the matrices after it multiplied by it, which changes
nothing but what is lost by rounding; likewise the rows of a gated layer's up projection and the columns of the one after it. The
factor is the mean magnitude of the input over a calibration text to a power that is searched by the squared error of the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from jakiro_export.artifact.weights import Array
from jakiro_export.checkpoints.scaled import ScaledStore
from jakiro_export.checkpoints.store import TensorStore
from jakiro_export.checkpoints.target import Target
from jakiro_export.errors import ExportError
from jakiro_export.quantization.rounding import INT4, Rounding
from jakiro_export.quantization.schemes.weights4 import GROUPS

CALIBRATION = Path(__file__).with_name("calibration.txt")
TOKENS, _ROWS = 512, 128  # of the text at most; of them compared by their outputs
_POWERS = np.arange(0, 1.01, 0.1)


class Exchange(NamedTuple):
    """before: a norm's gain, or a matrix whose rows are divided; after: the matrices whose columns are multiplied."""

    before: str
    after: tuple[str, ...]


def exchanges(layers: int, names: Iterable[str]) -> Iterator[Exchange]:
    """The pairs of a Llama-like model, by the names of its parameters.

    Raises:
        ExportError: a layer has not the matrices that such a model has
    """
    known = set(names)
    for layer in range(layers):
        base = f"model.layers.{layer}."
        attention, mlp = f"{base}self_attn.", f"{base}mlp."
        for before, after in (
            (f"{base}input_layernorm.weight", [f"{attention}{each}_proj.weight" for each in "qkv"]),
            (f"{base}post_attention_layernorm.weight", [f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"]),
            (f"{mlp}up_proj.weight", [f"{mlp}down_proj.weight"]),
        ):
            missing = next((name for name in (before, *after) if name not in known), None)
            if missing is not None:
                raise ExportError(f"Activation-aware scaling knows Llama-like layers; this target has no {missing}.")
            yield Exchange(before, tuple(after))


@torch.no_grad()
def inputs_of(model: nn.Module, names: Iterable[str], tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What enters the linear layers of these weights over a text, [tokens, in] each, by the weight's name."""
    found: dict[str, np.ndarray] = {}
    hooks = []
    for name in names:
        module = model.get_submodule(name.removesuffix(".weight"))
        hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0][0].numpy().copy()})))  # type: ignore[misc]
    try:
        model(input_ids=torch.from_numpy(tokens)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def scaled_store(store: TensorStore, model: Any, tokens: np.ndarray, group: int, stored: Callable[[str], str]) -> ScaledStore:
    """The store with factors exchanged for int4 in groups of `group`.

    Args:
        model: transformers' model with the store's weights in float32
        tokens: a text, [tokens]
        stored: the store's name of a parameter
    """
    parameters = dict(model.named_parameters())
    pairs = list(exchanges(model.config.num_hidden_layers, parameters))
    inputs = inputs_of(model, [pair.after[0] for pair in pairs], tokens)
    scaled = ScaledStore(store)
    for pair in pairs:
        matrix = np.concatenate([parameters[name].detach().numpy() for name in pair.after])
        factor = best_factor(inputs[pair.after[0]], matrix, group)
        scaled.rows_by[stored(pair.before)] = 1 / factor
        for name in pair.after:
            scaled.columns_by[stored(name)] = factor
    return scaled


def best_factor(x: np.ndarray, matrix: np.ndarray, group: int) -> np.ndarray:
    """The factor of each input, [in], for inputs x [tokens, in] of a matrix [out, in]; ones where scaling does not help."""
    size = np.maximum(np.abs(x).mean(0), 1e-4).astype(np.float32)
    rows = x[:: max(1, len(x) // _ROWS)]
    exact, best, least = rows @ matrix.T, np.ones(len(size), np.float32), np.inf
    for power in _POWERS:
        factor = size**power
        factor /= np.sqrt(factor.max() * factor.min())
        rounding = Rounding(Array(matrix * factor), INT4, group, np.dtype(np.float16))
        steps = np.concatenate(list(rounding.steps())).astype(np.float32).reshape(len(matrix), -1, group)
        found = (steps * rounding.scales.astype(np.float32)[..., None]).reshape(matrix.shape)
        error = float(((rows / factor) @ found.T - exact).__pow__(2).sum())
        if error < least:
            best, least = factor.astype(np.float32), error
    return best


def scale_by_activations(target: Target) -> None:
    """Exchange the factors of a target, in place, over the calibration text.

    Raises:
        ExportError: it is quantised already, or not Llama-like
    """
    if target.quantised is not None:
        raise ExportError(f"--scaling needs a target that is not quantised; this one is ({target.quantised}).")
    ids = target.tokenizer()(CALIBRATION.read_text(encoding="utf-8"))["input_ids"]
    tokens = np.array(ids[: min(TOKENS, int(target.config.max_position_embeddings))], np.int64)
    group = next((each for each in GROUPS if target.config.hidden_size % each == 0), GROUPS[-1])
    target.store = scaled_store(target.store, target.model(), tokens, group, target.tensor_name)
