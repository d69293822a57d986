"""Activations in 8 or 4 bits by row, in standard operators.

TensorRT's parser takes `QuantizeLinear` with a scale that is known when it builds, and none that a row has of its own. So a row
is divided by its largest magnitude before, and the product multiplied by it afterwards: between them all rows have one scale, and
nothing has to be calibrated.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from jakiro_export.artifact.weights import Array, Weight


def row_constants(dtype: np.dtype) -> dict[str, Weight]:
    """Initializers of `scaled_rows`: the least magnitude of a row, and the axis over which it is taken."""
    return {
        f"row.smallest.{dtype.name}": Array(np.array(2.0**-14, dtype)),
        "row.axis": Array(np.array([-1], np.int64)),
    }


def scaled_rows(data: ir.Value, constants: list[ir.Value]) -> tuple[list[ir.Node], ir.Value]:
    """Nodes that bring each row of data [..., in] into -1 to 1, the last with that result; and each row's magnitude, [..., 1]."""
    smallest, axis = constants
    size = ir.node("Abs", [data])
    largest = ir.node("ReduceMax", [size.outputs[0], axis], attributes={"keepdims": 1})
    above = ir.node("Max", [largest.outputs[0], smallest])
    scaled = ir.node("Div", [data, above.outputs[0]])
    return [size, largest, above, scaled], above.outputs[0]
