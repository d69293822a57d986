"""A graph is written, and its weights are streamed next to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import onnx
import onnx_ir as ir

from jakiro_export.artifact.weights import LazyWeight, Weight, nbytes, write

_ALIGNMENT = 4096  # ONNX Runtime maps external data that starts on a page
_INLINE_BYTES = 256

Progress = Callable[[int], None]


class DataFiles:
    """The external data of one engine directory. A tensor that two graphs share is written once.

    Use as a context manager; files are closed, and flushed to disk, at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress: Progress = lambda count: None  # called with bytes just written
        self._descriptors: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._places: dict[Weight, tuple[str, int, int]] = {}

    def __enter__(self) -> DataFiles:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for location, descriptor in self._descriptors.items():
            os.ftruncate(descriptor, self._ends[location])
            os.close(descriptor)

    def place(self, weight: Weight, location: str) -> tuple[str, int, int]:
        """Write a weight to the file `location` unless it has a place already: (file, offset, bytes)."""
        if weight in self._places:
            return self._places[weight]
        if location not in self._descriptors:
            self._descriptors[location] = os.open(self.folder / location, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            self._ends[location] = 0
        offset = -(-self._ends[location] // _ALIGNMENT) * _ALIGNMENT
        length = write(weight, self._descriptors[location], offset)
        self._ends[location] = offset + length
        self._places[weight] = (location, offset, length)
        self.progress(length)
        return self._places[weight]


def save(model: ir.Model, path: Path, files: DataFiles) -> None:
    """Write `path` and, in `path` + ".data", its weights. The graph refers to them by relative name."""
    location = f"{path.name}.data"
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, LazyWeight):
            continue
        if nbytes(tensor.weight) <= _INLINE_BYTES:
            value.const_value = ir.Tensor(tensor.numpy(), name=name)
            continue
        where, offset, length = files.place(tensor.weight, location)
        value.const_value = ir.ExternalTensor(
            where, offset, length, tensor.dtype, shape=tensor.shape, name=name, base_dir=str(path.parent)
        )
    proto = ir.to_proto(model)
    onnx.save_model(proto, str(path), save_as_external_data=False)


def data_bytes(model: ir.Model) -> int:
    """How many bytes of weights `save` will write, those shared with another graph included."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(nbytes(t.weight) for t in tensors if isinstance(t, LazyWeight))
