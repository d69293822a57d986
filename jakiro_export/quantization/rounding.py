"""Rounding of matrices to a few bits, with scales by group of the least squared error; and what a checkpoint has rounded already.

A matrix is [out, in]; a group is some inputs next to each other that share a scale. Scales are rounded to the type in which the
graph has them before the steps are taken, so that both fit each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np

from jakiro_export.artifact.weights import Stacked, Stored, Weight
from jakiro_export.checkpoints.quantised import Packed

INT4, FP8, FP4 = (np.dtype(each) for each in (ml_dtypes.int4, ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn))
INT8 = np.dtype(np.int8)
_ONE = np.float32(1)
LARGEST = {"int4": 7, "int8": 127, "float8_e4m3fn": 448, "float4_e2m1fn": 6}
# Shares of a group's largest magnitude that are tried as the end of the range. Above 1 no step is wasted on the sign that has it:
# int4 reaches to -8
_CLIPPING = tuple(np.float32(share) for share in (1.0, 0.97, 0.94, 0.91, 0.875, 0.84, 0.8, 0.76, 0.72, 0.68))


def stored_parts(matrix: Weight) -> list[Stored]:
    """The stored matrices of which one is stacked; none where it is anything else."""
    if isinstance(matrix, Stored):
        return [matrix]
    parts = matrix.parts if isinstance(matrix, Stacked) else ()
    found = [each for part in parts for each in stored_parts(part)]
    return found if found and sum(each.shape[0] for each in found) == matrix.shape[0] else []


def packed(matrix: Weight, kind: str) -> Packed | None:
    """A matrix that a quantised checkpoint has in this form, its stacked parts as one; None where it is to be rounded here.

    Parts with groups or orders of inputs of their own are none that one matmul can have, and are rounded again.
    """
    found: list[Packed] = []
    for part in stored_parts(matrix):
        each = part.packed
        if each is None or each.kind != kind:
            return None
        found.append(each)
    if not found:
        return None
    first, group = found[0], min(each.group for each in found)
    if any(each.group % group or not _same(each.order, first.order) for each in found):
        return None
    scales = [np.repeat(each.scales * (each.shared / first.shared), each.group // group, 1) for each in found]
    if kind == "fp4" and any(each.shared != first.shared for each in found):
        return None  # the scale that all share is one of the whole matmul
    zeros = None
    if any(each.zeros is not None for each in found):
        none = [np.zeros(each.scales.shape, np.int8) if each.zeros is None else each.zeros for each in found]
        zeros = np.concatenate([np.repeat(part, each.group // group, 1) for part, each in zip(none, found, strict=True)])
    return Packed(kind, np.concatenate([each.steps for each in found]), np.concatenate(scales), zeros, first.order, first.shared)


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


class Rounding:
    """A matrix [out, in] in steps of a small type, with a scale for every group.

    Args:
        step: the type of a step: int4, int8, float8_e4m3fn or float4_e2m1fn
        group: inputs that share a scale
        scale: the type of the scales
        search: choose each group's range by the squared error; otherwise it ends at the largest magnitude
        shared: what all scales are multiplied by where the steps are used
    """

    def __init__(
        self,
        matrix: Weight,
        step: np.dtype,
        group: int,
        scale: np.dtype,
        search: bool = False,
        shared: np.float32 = _ONE,
    ) -> None:
        self.matrix, self.step, self.group, self.scale, self.search, self.shared = matrix, step, group, scale, search, shared

    @cached_property
    def scales(self) -> np.ndarray:
        """[out, in / group] of the type they are written in."""
        return np.concatenate([self._scales(rows) for rows in self._grouped()])

    def steps(self) -> Iterator[np.ndarray]:
        """The steps of a few rows at a time, [n, in]."""
        done = 0
        for groups in self._grouped():
            scales = self.scales[done : done + len(groups)]
            done += len(groups)
            yield self._steps(groups, scales).reshape(len(groups), -1)

    def _grouped(self) -> Iterator[np.ndarray]:
        for panel in self.matrix.panels():
            yield panel.astype(np.float32).reshape(len(panel), -1, self.group)

    def _steps(self, groups: np.ndarray, scales: np.ndarray) -> np.ndarray:
        return quantise(groups, scales.astype(np.float32) * self.shared, self.step)

    def _scales(self, groups: np.ndarray) -> np.ndarray:
        largest = np.abs(groups).max(-1) / (LARGEST[self.step.name] * self.shared)
        smallest = np.float32(ml_dtypes.finfo(self.scale).smallest_subnormal)
        best: np.ndarray = np.maximum(largest, smallest).astype(self.scale)
        if not self.search:
            return best
        least = self._error(groups, best)
        for share in _CLIPPING[1:]:
            tried = np.maximum(largest * share, smallest).astype(self.scale)
            error = self._error(groups, tried)
            better = error < least
            best, least = np.where(better, tried, best), np.where(better, error, least)
        return best

    def _error(self, groups: np.ndarray, scales: np.ndarray) -> np.ndarray:
        values = scales.astype(np.float32)[..., None] * self.shared
        difference = self._steps(groups, scales).astype(np.float32) * values - groups
        return np.einsum("...i,...i->...", difference, difference)


class ShiftedRounding:
    """A matrix in int4 with a scale and an offset for every group: from the least of its values to the largest in 15 steps.

    A weight is offset + scale * step, -8 to 7; what GGUF's Q4_1 files hold is found again.
    """

    def __init__(self, matrix: Weight, group: int, scale: np.dtype) -> None:
        self.matrix, self.group, self.scale = matrix, group, scale

    def _grouped(self) -> Iterator[np.ndarray]:
        for panel in self.matrix.panels():
            yield panel.astype(np.float32).reshape(len(panel), -1, self.group)

    @cached_property
    def scales_and_offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """[out, in / group] each, of the type they are written in."""
        scales, offsets = [], []
        for groups in self._grouped():
            least = groups.min(-1)
            scales.append(((groups.max(-1) - least) / 15).astype(self.scale))
            offsets.append((least + 8 * scales[-1].astype(np.float32)).astype(self.scale))
        return np.concatenate(scales), np.concatenate(offsets)

    def steps(self) -> Iterator[np.ndarray]:
        """The steps of a few rows at a time, [n, in]."""
        done = 0
        for groups in self._grouped():
            scales, offsets = (each[done : done + len(groups)].astype(np.float32) for each in self.scales_and_offsets)
            done += len(groups)
            low = groups - offsets[..., None]
            found = np.divide(low, scales[..., None], out=np.zeros_like(low), where=scales[..., None] > 0)
            yield np.rint(found).clip(-8, 7).astype(np.int8).astype(INT4).reshape(len(groups), -1)


def quantise(groups: np.ndarray, scales: np.ndarray, step: np.dtype) -> np.ndarray:
    """Values [..., n] in steps of their scale [...], rounded to the nearest, ties to even, and clipped to the type's range."""
    steps = np.divide(groups, scales[..., None], out=np.zeros_like(groups), where=scales[..., None] > 0)
    if step.name in ("int4", "int8"):
        low = -8 if step.name == "int4" else -127
        return np.rint(steps, out=steps).clip(low, LARGEST[step.name]).astype(np.int8).astype(step)
    top = LARGEST[step.name]
    return steps.clip(-top, top).astype(step)


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of a matrix, [out, in], a few rows at a time, always an even number."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], Iterator[np.ndarray]]

    def panels(self) -> Iterator[np.ndarray]:
        left = np.empty((0, *self.shape[1:]), self.dtype)
        for panel in self.make():
            rows = np.concatenate([left, panel]) if len(left) else panel
            whole = len(rows) // 2 * 2
            left = rows[whole:]
            if whole:
                yield rows[:whole]
        if len(left):
            yield left


@dataclass(frozen=True, eq=False)
class Late:
    """A small tensor that is computed when it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    def panels(self) -> Iterator[np.ndarray]:
        yield np.ascontiguousarray(self.make().astype(self.dtype))
