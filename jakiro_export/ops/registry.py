"""The registry of operators: found in the files of this package, one or several of them a file, in `OPERATORS`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

import jakiro_export.ops
from jakiro_export.errors import ExportError
from jakiro_export.ops import DOMAIN
from jakiro_export.ops.operator import CallSite, Operator

_OPERATORS: dict[str, Operator] = {}


def register(operator: Operator) -> None:
    """Make an operator known: to exports, and to onnx's checker and shape inference.

    Raises:
        ValueError: there is another operator of this name.
    """
    if _OPERATORS.setdefault(operator.name, operator) is not operator:
        raise ValueError(f"There is an operator {operator.name} already; give the new one another name.")
    if operator.domain == DOMAIN and not onnx.defs.has(operator.name, DOMAIN):
        onnx.defs.register_schema(operator.schema())


def operators() -> Mapping[str, Operator]:
    """All operators by name."""
    return dict(_OPERATORS)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For torch.onnx.export: how operators that occur in traced modules are written."""
    return dict(each.translation for each in _OPERATORS.values() if each.translation is not None)


def bodies(model: ir.Model) -> list[onnx.FunctionProto]:
    """The bodies of the operators that a graph has, for its opset.

    Raises:
        ExportError: an operator that is not registered, a body that needs a later opset, or nodes that need different bodies
            under one name.
    """
    made: dict[str, onnx.FunctionProto] = {}
    for node in model.graph:
        if node.domain != DOMAIN:
            continue
        operator = _OPERATORS.get(node.op_type)
        if operator is None:
            raise ExportError(f"The graph has an operator {node.op_type} that is not among those of jakiro_export.ops.")
        if operator.name in made and not operator.by_site:
            continue
        body = operator.function(_site(node, operator, int(model.graph.opset_imports[""])))
        if made.setdefault(operator.name, body) != body:
            raise ExportError(f"The graph has {operator.name} nodes that differ in shapes or attributes; one kind a graph.")
    return [made[name] for name in sorted(made)]


def standard_nodes(name: str, inputs: Sequence[ir.Value], opset: int = 20) -> tuple[list[ir.Node], list[ir.Value]]:
    """What an operator without attributes consists of, in place of one node: nodes, not yet in a graph, and its results."""
    function = _OPERATORS[name].function(CallSite(opset, int(inputs[0].dtype or ir.DataType.FLOAT)))
    values = dict(zip(function.input, inputs, strict=True))
    nodes = []
    for proto in function.node:
        attributes = [ir.serde.deserialize_attribute(each) for each in proto.attribute]
        made = ir.Node("", proto.op_type, [values[each] for each in proto.input], attributes, num_outputs=len(proto.output))
        values.update(zip(proto.output, made.outputs, strict=True))
        nodes.append(made)
    return nodes, [values[each] for each in function.output]


def _site(node: ir.Node, operator: Operator, opset: int) -> CallSite:
    shapes = {
        operand.name: tuple(value.shape)
        for operand, value in zip(operator.inputs, node.inputs, strict=True)
        if value is not None and value.shape is not None
    }
    data = node.inputs[0]
    kind = data.dtype if data is not None and data.dtype is not None else ir.DataType.FLOAT
    return CallSite(opset, int(kind), shapes, {name: attribute.value for name, attribute in node.attributes.items()})


for _module in sorted(each.name for each in pkgutil.iter_modules(jakiro_export.ops.__path__)):
    if f"{__package__}.{_module}" != __name__:
        for _operator in getattr(importlib.import_module(f"{__package__}.{_module}"), "OPERATORS", ()):
            register(_operator)
