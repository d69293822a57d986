"""Bodies of operators: functions in standard ONNX operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Body:
    """The nodes of a function in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node with one output; the output's name."""
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        return self.add("Constant", [], name, value=numpy_helper.from_array(np.asarray(value), name))
