"""What describes an operator: name, operands, attributes, arithmetic in torch, body in standard ONNX operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxscript
from onnx import helper

from jakiro_export.errors import ExportError
from jakiro_export.ops import DOMAIN
from jakiro_export.ops.body import Body

VERSION = 1
JAKIRO = onnxscript.values.Opset(DOMAIN, VERSION)  # for translations
# the activations' type where an operator takes several, by the name that `Operand.type` gives it
TYPE_VARIABLES = {"T": ("float", "float16", "bfloat16")}


class Operand(NamedTuple):
    """An input or an output.

    type: as ONNX spells it ("float", "int64"), or the name of a type variable
    shape: axis names, for readers: "[batch, rows, hidden]"
    """

    name: str
    type: str
    shape: str


class Attribute(NamedTuple):
    """An attribute. type: "int", "float" or "string"; default: None where every node must give a value."""

    type: str
    doc: str
    default: int | float | str | None = None


class Example(NamedTuple):
    """Inputs by name, of shapes that fit together, and attributes: what an operator can be tried on."""

    inputs: dict[str, np.ndarray]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class CallSite:
    """What is known where a node calls an operator; a body may be written for it.

    opset: of standard operators; type: the first input's element type (onnx.TensorProto); shapes: of inputs, by name, where known
    """

    opset: int
    type: int = onnx.TensorProto.FLOAT
    shapes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Operator:
    """One operator, all of it.

    name, domain: as in ONNX; a domain of "" is a standard operator, which has no body here
    eager: its arithmetic in torch: inputs in order, then attributes by name; a tensor, or a tuple of them
    body: builds the body in standard operators and returns the results' names, in the order of `outputs`
    example: random inputs and attributes, for tests
    opset: the lowest opset whose operators the body needs
    translation: what torch.onnx.export needs for operators that occur in traced modules: torch's operator and its ONNX form
    by_site: the body is written for the shapes and attributes of a node, and all nodes of a graph must agree
    cpu_kernel, tensorrt_plugin: what replaces the body where it is there
    """

    name: str
    doc: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    eager: Callable[..., Any]
    example: Callable[[np.random.Generator], Example]
    body: Callable[[Body, CallSite], tuple[str, ...]] | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    opset: int = 18
    translation: tuple[Any, Callable[..., Any]] | None = None
    by_site: bool = False
    cpu_kernel: bool = False
    tensorrt_plugin: bool = False
    domain: str = DOMAIN

    def function(self, site: CallSite) -> onnx.FunctionProto:
        """The body as an ONNX function.

        Raises:
            ExportError: the graph's opset is too low for it.
        """
        if self.body is None or site.opset < self.opset:
            raise ExportError(f"Operator {self.name} has no body in opset {site.opset}; it needs {self.opset} or later.")
        builder, names = Body(), [output.name for output in self.outputs]
        nodes = builder.finish(self.body(builder, site), names)
        inputs, opsets = [each.name for each in self.inputs], [helper.make_opsetid("", site.opset)]
        return helper.make_function(self.domain, self.name, inputs, names, nodes, opsets, list(self.attributes))

    def schema(self) -> onnx.defs.OpSchema:
        """The operator as onnx's checker and shape inference know operators."""
        kind = onnx.defs.OpSchema
        operands = [*self.inputs, *self.outputs]
        variables = [name for name in TYPE_VARIABLES if any(each.type == name for each in operands)]

        def formal(each: Operand) -> Any:
            return kind.FormalParameter(each.name, each.type if each.type in TYPE_VARIABLES else f"tensor({each.type})")

        return kind(
            self.name,
            self.domain,
            VERSION,
            doc=self.doc,
            inputs=[formal(each) for each in self.inputs],
            outputs=[formal(each) for each in self.outputs],
            type_constraints=[(name, [f"tensor({each})" for each in TYPE_VARIABLES[name]], "activations") for name in variables],
            attributes=[_formal_attribute(name, each) for name, each in self.attributes.items()],
        )


def _formal_attribute(name: str, attribute: Attribute) -> Any:
    kind = onnx.defs.OpSchema
    if attribute.default is None:
        return kind.Attribute(name, getattr(kind.AttrType, attribute.type.upper()), attribute.doc)
    return kind.Attribute(name, helper.make_attribute(name, attribute.default), attribute.doc)
