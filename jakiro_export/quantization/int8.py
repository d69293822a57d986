"""Weights in bytes, a scale for each output channel; rows rotated, then in bytes with a scale for each.

    weight [out / 16, in / 4, 16, 4]: unsigned bytes around 128; scales [out]; rotation [block, block]

A few entries of an activation are far larger than the rest and would leave the others few steps. So rows are rotated first,
`block` entries at a time, by a Hadamard matrix, which spreads such an entry over its block; the weights were rotated the same way
when they were written, and the product stays what it was.

Both operands of the body are unsigned with zero point 128. Signed weights would do, but processors with AVX2 and no VNNI multiply
unsigned by signed bytes with saturation. The layout of the weights is that of the runtime's kernel (`jakiro_runtime/kernels`);
ONNX Runtime folds the body's transposition when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from jakiro_export.artifact.weights import Array, Weight, sixteens
from jakiro_export.ops.body import Body

NAME = "RowInt8MatMul"
INPUTS = {"x": "tensor(float)", "rotation": "tensor(float)", "weight": "tensor(uint8)", "scales": "tensor(float)"}
_ZERO = 128
LEAST = 2.0**-100  # a row of zeros is divided by this
LANES, _SIDE = 16, 4  # outputs and inputs that lie side by side


def fits(shape: tuple[int, ...]) -> bool:
    """Whether a matrix [out, in] can be tiled."""
    return shape[0] % LANES == 0 and shape[1] % _SIDE == 0


def initializers(channels: Weight, name: str) -> dict[str, Weight]:
    """What a product with a matrix [out, in] of this name needs, by the names to give it."""
    block, rotated = block_of(channels.shape[1]), Rotated(channels)
    return {
        f"rotation_{block}": Array(hadamard(block)),
        f"{name}.bytes": Tiled(Channels(rotated)),
        f"{name}.scales": ChannelScales(rotated),
    }


def hadamard(size: int) -> np.ndarray:
    """The normalised Hadamard matrix [size, size] of a power of two: symmetric, and its own inverse."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(size)).astype(np.float32)


def block_of(width: int) -> int:
    """How many entries of a row of `width` are rotated together: the largest power of two that divides it, at most 64."""
    return min(64, width & -width)


@dataclass(frozen=True)
class Rotated:
    """A matrix [out, in] whose rows are rotated as `RowInt8MatMul` rotates activations."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def panels(self) -> Iterator[np.ndarray]:
        block = block_of(self.shape[1])
        for panel in self.weight.panels():
            rows = panel.astype(np.float32)
            yield (rows.reshape(-1, block) @ hadamard(block)).reshape(rows.shape)


@dataclass(frozen=True)
class Channels:
    """A matrix [out, in] in unsigned bytes around 128, each row scaled so that its largest magnitude is 127."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def panels(self) -> Iterator[np.ndarray]:
        for panel in self.weight.panels():
            rows = panel.astype(np.float32)
            yield (np.rint(rows / _scales(rows)[:, None]) + _ZERO).astype(np.uint8)


@dataclass(frozen=True)
class ChannelScales:
    """What each row of `Channels` is multiplied by, [out]."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape[:1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def panels(self) -> Iterator[np.ndarray]:
        for panel in self.weight.panels():
            yield _scales(panel.astype(np.float32))


@dataclass(frozen=True)
class Tiled:
    """A matrix [out, in] as [out / 16, in / 4, 16, 4]: what one instruction multiplies lies side by side."""

    weight: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.weight.shape
        return (rows // LANES, columns // _SIDE, LANES, _SIDE)

    @property
    def dtype(self) -> np.dtype:
        return self.weight.dtype

    def panels(self) -> Iterator[np.ndarray]:
        for rows in sixteens(self.weight):
            yield rows.reshape(-1, LANES, rows.shape[1] // _SIDE, _SIDE).swapaxes(1, 2)


def _scales(rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(rows).max(1), np.float32(LEAST)) / np.float32(127)


def body(b: Body, x: str) -> str:
    """The product in standard operators; the name of its result."""
    last, zero = b.constant("last", np.array([-1], np.int64)), b.constant("zero", np.array(_ZERO, np.uint8))
    # the rotation, `block` entries of a row at a time
    b.add(
        "Split",
        [b.add("Shape", ["rotation"], "rotation_shape"), b.constant("halves", np.array([1, 1], np.int64))],
        "block",
        axis=0,
    )
    b.nodes[-1].output.append("block_again")
    b.add("Concat", [last, "block"], "blocks", axis=0)
    b.add("MatMul", [b.add("Reshape", [x, "blocks"], "in_blocks"), "rotation"], "rotated_blocks")
    rotated = b.add("Reshape", ["rotated_blocks", b.add("Shape", [x], "shape")], "rotated")
    # rows as bytes around 128, and the scale of each row
    size = b.add("ReduceMax", [b.add("Abs", [rotated], "sizes"), last], "size", keepdims=1)
    least = b.add("Max", [size, b.constant("least", np.array(LEAST, np.float32))], "positive")
    scale = b.add("Div", [least, b.constant("full", np.array(127, np.float32))], "scale")
    steps = b.add("Round", [b.add("Div", [rotated, scale], "in_steps")], "steps")
    around = b.add("Add", [steps, b.constant("middle", np.array(_ZERO, np.float32))], "around")
    rows = b.add("Cast", [around], "rows", to=onnx.TensorProto.UINT8)
    # the weights as a matrix [in, out]
    b.add("Concat", [last, b.add("Shape", ["scales"], "outs")], "matrix_shape", axis=0)
    matrix = b.add("Reshape", [b.add("Transpose", ["weight"], "turned", perm=[1, 3, 0, 2]), "matrix_shape"], "matrix")
    sums = b.add("Cast", [b.add("MatMulInteger", [rows, matrix, zero, zero], "product")], "sums", to=onnx.TensorProto.FLOAT)
    return b.add("Mul", [b.add("Mul", [sums, scale], "by_row"), "scales"], "scaled")
