"""Tensors that some library had to load whole: GGUF files, `.bin` checkpoints."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from jakiro_export.errors import ExportError


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's values, bfloat16 included."""
    values = tensor.detach().contiguous()
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return values.numpy()


class MemoryStore:
    """A `TensorStore` of torch tensors, read in place."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype:
        return self.rows(name, 0, 0).dtype

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return as_numpy(self._tensors[name][start:stop])


def read_pickled(file: Path) -> MemoryStore:
    """The tensors of a `.bin` file. Nothing but tensors is unpickled.

    Raises:
        ExportError: the file is damaged, or holds more than tensors
    """
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{file} holds more than plain tensors and was not opened; convert it to safetensors with a tool you trust."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ExportError(f"{file} is damaged or not a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise ExportError(f"{file} is not a dictionary of tensors.")
    return MemoryStore(tensors)
