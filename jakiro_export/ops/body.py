"""Builder of operator bodies: ONNX functions in standard operators."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper


class AttributeRef(NamedTuple):
    """Stands for the value that a node gives to one of its operator's attributes."""

    name: str
    type: int = onnx.AttributeProto.FLOAT


class Body:
    """The nodes of a function in the making. Values are strings; inputs of the function go by their own names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, which is returned."""
        (output,) = self.add_many(op, *inputs, outputs=1, **attributes)
        return output

    def add_many(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """A node with `outputs` outputs, which are returned."""
        number = len(self.nodes)
        names = tuple(f"{op}_{number}" if outputs == 1 else f"{op}_{number}_{n}" for n in range(outputs))
        plain = {name: value for name, value in attributes.items() if not isinstance(value, AttributeRef)}
        node = helper.make_node(op, list(inputs), list(names), **plain)
        for name, value in attributes.items():
            if isinstance(value, AttributeRef):
                node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=value.name, type=value.type))  # type: ignore[arg-type]
        self.nodes.append(node)
        return names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant; Python integers become int64."""
        return self.add("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def size(self, tensor: str, axis: int) -> str:
        """The length of an axis, as a tensor [1]."""
        return self.add("Shape", tensor, start=axis, end=axis + 1)

    def cast(self, tensor: str, to: int) -> str:
        """A tensor in another element type (onnx.TensorProto)."""
        return self.add("Cast", tensor, to=to)

    def finish(self, results: tuple[str, ...], outputs: list[str]) -> list[onnx.NodeProto]:
        """The nodes, with `results` under the names of the function's `outputs`."""
        names = dict(zip(results, outputs, strict=True))
        for node in self.nodes:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        return self.nodes
