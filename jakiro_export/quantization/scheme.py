"""What a quantisation scheme answers."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from jakiro_export.artifact.weights import Weight
from jakiro_export.ops import DOMAIN


class Scheme(Protocol):
    """How matrices are rounded, laid out, and multiplied with in a graph."""

    @property
    def name(self) -> str:
        """As recipes and the command line have it."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix [out, in] can be written in this scheme."""

    def initializers(self, matrix: Weight, name: str) -> dict[str, Weight]:
        """What a matmul with a matrix [out, in] of this name reads, in the order of its inputs, by the names to give it."""

    def matmul(self, data: ir.Value, weights: list[ir.Value]) -> list[ir.Node]:
        """Nodes that multiply data [..., in] with `initializers`; the last one's output is the result, [..., out]."""


class RowScheme:
    """A scheme whose matmul is one operator of `jakiro_export.ops.row_matmul`."""

    operator: str

    def matmul(self, data: ir.Value, weights: list[ir.Value]) -> list[ir.Node]:
        return [ir.node(self.operator, [data, *weights], domain=DOMAIN)]
