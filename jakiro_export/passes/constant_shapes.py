"""Shapes that are known are written as constants."""

from __future__ import annotations

import onnx_ir as ir

from jakiro_export.passes.editing import add_int_constant


def constant_shapes(model: ir.Model) -> None:
    """Write the shape of a Reshape as a constant where only the input's own symbols occur in it.

    torch computes shapes at run time, a dozen nodes each. `0` copies the input's dimension, one `-1` is inferred.
    """
    for node in list(model.graph):
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        data, target = node.inputs[0], node.outputs[0].shape
        if data is None or data.shape is None or target is None:
            continue
        sizes, inferred = [], 0
        for axis, size in enumerate(target):
            if isinstance(size, int):
                sizes.append(size)
            elif axis < len(data.shape) and data.shape[axis] == size:
                sizes.append(0)
            else:
                sizes.append(-1)
                inferred += 1
        if inferred > 1 or (inferred and 0 in sizes):  # onnx's shape inference refuses 0 together with -1
            continue
        node.replace_input_with(1, add_int_constant(model, "shape", sizes))
        node.attributes.pop("allowzero", None)
