"""Weights as they are written: recipes over stored tensors, evaluated panel by panel.

A panel is a few rows of the tensor as stored, rows being output channels. Stacking, transposing and casting are said once, as a
recipe; `write` then streams it to a file without ever holding the whole tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import numpy as np
import onnx_ir as ir

from jakiro_export.checkpoints.quantised import Packed, QuantisedStore
from jakiro_export.checkpoints.store import TensorStore

PANEL_BYTES = 32 * 1024 * 1024


class Weight(Protocol):
    """A tensor to be written, read as a sequence of row panels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as written."""

    @property
    def dtype(self) -> np.dtype:
        """The element type as written."""

    def panels(self) -> Iterator[np.ndarray]:
        """The rows in order, a few at a time: arrays [n, *shape[1:]]."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint, cast to the type it is written in."""

    store: TensorStore
    name: str
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.store.shapes()[self.name]

    @property
    def packed(self) -> Packed | None:
        """The matrix as a quantised checkpoint stores it; None where it is a plain one."""
        return self.store.packed(self.name) if isinstance(self.store, QuantisedStore) else None

    def panels(self) -> Iterator[np.ndarray]:
        rows = self.shape[0]
        step = max(1, PANEL_BYTES // max(1, 4 * prod(self.shape[1:])))
        for start in range(0, rows, step):
            yield self.store.rows(self.name, start, min(start + step, rows)).astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Part:
    """One of the tensors that a stored tensor is made of along its first axis: an expert's."""

    store: TensorStore
    name: str
    dtype: np.dtype
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.store.shapes()[self.name][1:]

    def panels(self) -> Iterator[np.ndarray]:
        yield self.store.rows(self.name, self.index, self.index + 1)[0].astype(self.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Picked:
    """Some rows of a stored tensor, in the order given: the head's reduced vocabulary."""

    store: TensorStore
    name: str
    dtype: np.dtype
    rows: np.ndarray = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.store.shapes()[self.name][1:])

    def panels(self) -> Iterator[np.ndarray]:
        step = max(1, PANEL_BYTES // max(1, 4 * prod(self.shape[1:])))
        for start in range(0, len(self.rows), step):
            rows = self.rows[start : start + step]
            out = np.empty((len(rows), *self.shape[1:]), self.dtype)
            # runs of consecutive row numbers are read at once; sorting makes the runs long
            order = np.argsort(rows)
            runs = np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1)
            for run in runs:
                first, last = int(rows[run[0]]), int(rows[run[-1]])
                out[run] = self.store.rows(self.name, first, last + 1).astype(self.dtype)
            yield out


@dataclass(frozen=True, eq=False)
class Array:
    """A small tensor held in memory."""

    value: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self) -> np.dtype:
        return self.value.dtype

    def panels(self) -> Iterator[np.ndarray]:
        yield np.atleast_1d(self.value)  # a scalar has no rows


@dataclass(frozen=True)
class Stacked:
    """Several weights, one after the other along the rows: fused projections."""

    parts: tuple[Weight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    def panels(self) -> Iterator[np.ndarray]:
        for part in self.parts:
            yield from part.panels()


@dataclass(frozen=True)
class Reshaped:
    """The same bytes under another shape: [experts * rows, columns] seen as [experts, rows, columns]."""

    weight: Weight
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.weight.dtype

    def panels(self) -> Iterator[np.ndarray]:
        return self.weight.panels()


@dataclass(frozen=True)
class Transposed:
    """A matrix written column by column: a Linear's [out, in] as the [in, out] that MatMul takes."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.weight.shape
        return (columns, rows)

    @property
    def dtype(self) -> np.dtype:
        return self.weight.dtype

    def panels(self) -> Iterator[np.ndarray]:
        """The *columns* of the written tensor, a few at a time: arrays [shape[0], n]."""
        for panel in self.weight.panels():
            yield np.ascontiguousarray(panel.T)


class LazyWeight(ir.LazyTensor):
    """A recipe as an ONNX IR tensor. Graph passes see its type and shape; only the writer reads it."""

    def __init__(self, weight: Weight, name: str) -> None:
        dtype = ir.DataType.from_numpy(weight.dtype)
        super().__init__(self._evaluate, dtype=dtype, shape=ir.Shape(weight.shape), name=name)
        self.weight = weight

    def _evaluate(self) -> ir.Tensor:
        axis, panels = 1 if isinstance(self.weight, Transposed) else 0, list(self.weight.panels())
        value = (np.concatenate(panels, axis=axis) if self.weight.shape else panels[0]).reshape(self.weight.shape)
        return ir.Tensor(value, name=self.name)


def is_half_byte(dtype: np.dtype) -> bool:
    """Whether two values of a type share a byte in a file; in memory each has its own."""
    return dtype.name in ("int4", "uint4", "float4_e2m1fn")


def nbytes(weight: Weight) -> int:
    """The bytes of a weight in a file."""
    total = prod(weight.shape) * weight.dtype.itemsize
    return -(-total // 2) if is_half_byte(weight.dtype) else total


def pack(values: np.ndarray) -> np.ndarray:
    """Values of half a byte, [..., 2 n], as bytes [..., n]; the first of a pair is in the lower four bits, as ONNX has it."""
    bits = values.view(np.uint8) & 15
    packed: np.ndarray = bits[..., ::2] | bits[..., 1::2] << 4
    return packed


def write(weight: Weight, descriptor: int, offset: int) -> int:
    """Stream a weight to a file at `offset`; returns the bytes written. Memory stays at a panel or two.

    Panels of half bytes have an even number of values a row.
    """
    halves = is_half_byte(weight.dtype)
    if not isinstance(weight, Transposed):
        position = offset
        for panel in weight.panels():
            data = np.ascontiguousarray(pack(panel) if halves else panel)
            _write_all(descriptor, data, position)
            position += data.nbytes
        return position - offset
    width, done = nbytes(weight) // weight.shape[0], 0
    for panel in weight.panels():
        data = pack(panel) if halves else panel
        for row in range(data.shape[0]):
            _write_all(descriptor, data[row], offset + row * width + done)
        done += data.shape[1] * data.itemsize
    return nbytes(weight)


def _write_all(descriptor: int, array: np.ndarray, position: int) -> None:
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written


def sixteens(weight: Weight) -> Iterator[np.ndarray]:
    """The panels of a matrix [out, in], cut to whole sixteens of rows."""
    left = np.empty((0, weight.shape[1]), weight.dtype)
    for panel in weight.panels():
        rows = np.concatenate([left, panel])
        whole = len(rows) // 16 * 16
        left = rows[whole:]
        if whole:
            yield rows[:whole]


def stacked(parts: Sequence[Weight]) -> Weight:
    """Several weights as one along the rows, looking through transposition: [in, a] and [in, b] become [in, a + b]."""
    if all(isinstance(part, Transposed) for part in parts):
        return Transposed(Stacked(tuple(part.weight for part in parts)))  # type: ignore[attr-defined]
    return Stacked(tuple(parts))
