"""An array in a GPU's memory with as much of NumPy's manners as the loop needs: views by slices, assignment, reading back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import numpy as np


class DeviceMemory(Protocol):
    """What an array needs of the memory it lies in."""

    def copy_box(
        self, to: int, source: int, extent: tuple[int, int, int], to_pitch: tuple[int, int], source_pitch: tuple[int, int]
    ) -> None:
        """Copy depth x height runs of bytes, to or from the device.

        Args:
            to, source: addresses
            extent: (width in bytes, height, depth)
            to_pitch, source_pitch: (bytes from one run to the next, runs from one slice to the next)
        """

    def synchronize(self) -> None:
        """Wait until every copy is done."""


class DeviceArray:
    """Device memory, or a view of some.

    address: of its first element; strides: bytes, as NumPy's
    """

    def __init__(
        self,
        memory: DeviceMemory,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        strides: tuple[int, ...],
        base: Any = None,
    ) -> None:
        self.memory, self.address, self.shape, self.dtype, self.strides = memory, address, shape, dtype, strides
        self._base = base  # whose memory this is; kept alive

    @staticmethod
    def dense(memory: DeviceMemory, address: int, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
        """In row-major order without gaps."""
        strides = tuple(dtype.itemsize * prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return DeviceArray(memory, address, shape, dtype, strides)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether it has no gaps, in row-major order."""
        return not _axes(self.shape, (self.strides,), self.dtype.itemsize)[0]

    def __getitem__(self, index: Any) -> DeviceArray:
        address, shape, strides = self.address, [], []
        for place, length, stride in zip(_expanded(index, len(self.shape)), self.shape, self.strides, strict=True):
            if isinstance(place, slice):
                start, stop, step = place.indices(length)
                if step != 1:
                    raise IndexError("slices of device memory have no steps")
                address += start * stride
                shape.append(max(0, stop - start))
                strides.append(stride)
            else:
                number = int(place) + (length if place < 0 else 0)
                if not 0 <= number < length:
                    raise IndexError(f"{place} is outside 0..{length - 1}")
                address += number * stride
        return DeviceArray(self.memory, address, tuple(shape), self.dtype, tuple(strides), self._base or self)

    def __setitem__(self, index: Any, value: Any) -> None:
        view = self[index]
        if isinstance(value, DeviceArray):
            if value.shape != view.shape or value.dtype != view.dtype:
                raise ValueError(f"{value.dtype} {value.shape} cannot be put into {view.dtype} {view.shape}")
            _copy(view, value.address, value.strides, view.address, view.strides)
            return
        given = np.array(np.broadcast_to(value, view.shape), self.dtype, order="C")
        _copy(view, given.ctypes.data, given.strides, view.address, view.strides)
        self.memory.synchronize()  # before `given` goes

    def copy(self) -> np.ndarray:
        """Its values on the host, once everything before is done."""
        values = np.empty(self.shape, self.dtype)
        _copy(self, self.address, self.strides, values.ctypes.data, values.strides)
        self.memory.synchronize()
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.copy()
        return values if dtype is None else values.astype(dtype)


def _expanded(index: Any, axes: int) -> list[Any]:
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis not in parts:
        parts.append(Ellipsis)
    place = parts.index(Ellipsis)
    return [*parts[:place], *[slice(None)] * (axes - len(parts) + 1), *parts[place + 1 :]]


def _axes(
    shape: Sequence[int], strides: tuple[Sequence[int], ...], itemsize: int
) -> tuple[list[tuple[int, tuple[int, ...]]], int]:
    """The fewest axes that cover a box in several memories: (length, stride in each) outermost first; and a run's bytes."""
    width, axes = itemsize, list[tuple[int, tuple[int, ...]]]()
    for length, *steps in reversed(list(zip(shape, *strides, strict=True))):
        if length == 1:
            continue
        if not axes and all(step == width for step in steps):
            width *= length
        elif axes and all(step == axes[0][0] * inner for step, inner in zip(steps, axes[0][1], strict=True)):
            axes[0] = (axes[0][0] * length, axes[0][1])
        else:
            axes.insert(0, (length, tuple(steps)))
    return axes, width


def _copy(box: DeviceArray, source: int, source_strides: Sequence[int], to: int, to_strides: Sequence[int]) -> None:
    """Copy the values of `box`'s shape between two places, of which at least one is on the device."""
    if prod(box.shape):
        axes, width = _axes(box.shape, (source_strides, to_strides), box.dtype.itemsize)
        _copy_axes(box.memory, axes, width, source, to)


def _copy_axes(memory: DeviceMemory, axes: list[tuple[int, tuple[int, ...]]], width: int, source: int, to: int) -> None:
    regular = len(axes) < 2 or all(outer % inner == 0 for outer, inner in zip(axes[0][1], axes[1][1], strict=True))
    if len(axes) > 2 or not regular:  # more than one strided copy can say
        length, (source_step, to_step) = axes[0]
        for number in range(length):
            _copy_axes(memory, axes[1:], width, source + number * source_step, to + number * to_step)
        return
    depth, outer = axes[0] if len(axes) == 2 else (1, (0, 0))
    height, pitch = axes[-1] if axes else (1, (width, width))
    rows = [outer[side] // pitch[side] if outer[side] else height for side in (0, 1)]
    memory.copy_box(to, source, (width, height, depth), (pitch[1], rows[1]), (pitch[0], rows[0]))
