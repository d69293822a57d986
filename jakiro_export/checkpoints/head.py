"""A head in the published checkpoint format, checked tensor by tensor before anything is built from it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jakiro_export.checkpoints.store import MemoryStore, SafetensorsStore, TensorStore
from jakiro_export.errors import ExportError, UsageError
from jakiro_export.heads.jakiro import HeadConfig

_LAYER = "layers.0."
_IGNORED = ("embed_tokens", "lm_head")


@dataclass
class HeadCheckpoint:
    """A head as it was found: sizes, weights by published name, and how often its target writes each token."""

    name: str
    path: Path
    config: HeadConfig
    store: TensorStore
    token_order: np.ndarray | None  # token ids, most frequent first; None where the checkpoint does not say

    @property
    def parameters(self) -> int:
        shapes = self.store.shapes()
        return sum(int(np.prod(shapes[name])) for name in expected_shapes(self.config))


def expected_shapes(config: HeadConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published Jakiro or Jakiro* head and its shape."""
    c = config
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (c.hidden, 2 * c.hidden)}
    if c.fc_bias:
        shapes["fc.bias"] = (c.hidden,)
    for name, width in (("q", q), ("k", kv), ("v", kv)):
        shapes[f"{_LAYER}self_attn.{name}_proj.weight"] = (width, c.hidden)
        if c.qkv_bias:
            shapes[f"{_LAYER}self_attn.{name}_proj.bias"] = (width,)
    shapes[f"{_LAYER}self_attn.o_proj.weight"] = (c.hidden, q)
    shapes[f"{_LAYER}mlp_moe.gate.weight"] = (c.experts + (0 if c.star else 2), c.hidden)
    for expert in range(c.experts):
        base = f"{_LAYER}mlp_moe.experts.{expert}."
        if c.star:
            shapes[f"{base}fc.weight"], shapes[f"{base}proj.weight"] = (c.inner, c.hidden), (c.hidden, c.inner)
            if c.third:
                shapes[f"{base}fc1.weight"] = (c.hidden, c.hidden)
            continue
        shapes[f"{base}gate_proj.weight"] = shapes[f"{base}up_proj.weight"] = (c.inner, c.hidden)
        shapes[f"{base}down_proj.weight"] = (c.hidden, c.inner)
    shapes[f"{_LAYER}post_attention_layernorm.weight"] = (c.hidden,)
    return shapes


def load_head(path: Path, name: str) -> HeadCheckpoint:
    """Open and check a head.

    Raises:
        UsageError: `path` is not a head's folder.
        ExportError: a tensor is missing or mis-shaped, a pickle holds more than tensors, a file is damaged, or the head
            is of a kind this exporter does not know.
    """
    if not (path / "config.json").is_file():
        raise UsageError(f"The head {path} is not a folder with a config.json and weights.")
    try:
        raw: dict[str, Any] = json.loads((path / "config.json").read_text())
        config = HeadConfig.from_dict(raw)
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"The head's config.json in {path} is unusable: {type(error).__name__}: {error}.") from error
    if config.experts != 2:
        raise ExportError(
            f"The head in {path} has {config.experts} experts; the published gate weighs exactly two against each other."
        )
    store = _open(path)
    config = _variant(config, store.shapes())
    _check(store, config, path)
    return HeadCheckpoint(name, path, config, store, _token_order(path, config.vocab))


def _open(path: Path) -> TensorStore:
    safetensors, pickled = path / "model.safetensors", path / "pytorch_model.bin"
    if safetensors.is_file():
        return SafetensorsStore([safetensors])
    if not pickled.is_file():
        raise ExportError(f"The head in {path} has neither model.safetensors nor pytorch_model.bin.")
    try:
        tensors = torch.load(pickled, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{pickled} holds more than plain tensors and was not opened; convert it to safetensors with a tool you trust."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ExportError(f"{pickled} is damaged or not a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise ExportError(f"{pickled} is not a dictionary of tensors.")
    return MemoryStore(tensors)


def _variant(config: HeadConfig, shapes: Mapping[str, tuple[int, ...]]) -> HeadConfig:
    """Jakiro* is told by its experts' tensors; its config.json says nothing of it."""
    expert = f"{_LAYER}mlp_moe.experts.0."
    if f"{expert}fc.weight" not in shapes:
        return config
    inner = next(iter(shapes[f"{expert}fc.weight"]), 0)
    return replace(config, star=True, third=f"{expert}fc1.weight" in shapes, inner=inner)


def _check(store: TensorStore, config: HeadConfig, path: Path) -> None:
    shapes = store.shapes()
    expected = expected_shapes(config)
    what = f"The {'Jakiro*' if config.star else 'Jakiro'} head in {path}"
    for name, shape in expected.items():
        if name not in shapes:
            raise ExportError(f"{what} lacks the tensor {name}, expected with shape {list(shape)}.")
        if shapes[name] != shape:
            raise ExportError(f"{what}: tensor {name} has shape {list(shapes[name])}, expected {list(shape)}.")
    extra = [name for name in shapes if name not in expected and not name.startswith(_IGNORED)]
    if extra:
        raise ExportError(f"{what} has a tensor {extra[0]} that published ones do not have.")


def _token_order(path: Path, vocab: int) -> np.ndarray | None:
    file = path / "token_order.safetensors"
    if not file.is_file():
        return None
    store = SafetensorsStore([file])
    if "token_ids" not in store.shapes():
        raise ExportError(f"{file} lacks the tensor token_ids: token numbers, most frequent first.")
    order = store.rows("token_ids", 0, store.shapes()["token_ids"][0]).astype(np.int64)
    if order.ndim != 1 or len(np.unique(order)) != len(order) or order.min() < 0 or order.max() >= vocab:
        raise ExportError(f"{file}: token_ids must be distinct token numbers below {vocab}.")
    return order
