"""An engine directory's graphs as TensorRT gets them: what they demand, and expert dispatch as a plugin or as its body."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, inliner

from jakiro_export.errors import ExportError
from jakiro_export.ops import DOMAIN
from jakiro_export.tensorrt.fp4 import has_fp4, standard_fp4
from jakiro_export.tensorrt.group_matmul import group_matmuls, with_plugin
from jakiro_export.tensorrt.lowering import lower

_BITS: dict[int, int] = {
    TensorProto.DOUBLE: 64, TensorProto.INT64: 64, TensorProto.FLOAT: 32, TensorProto.INT32: 32, TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16, TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.BOOL: 8, TensorProto.INT4: 4,
    TensorProto.UINT4: 4, TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E5M2: 8, TensorProto.FLOAT4E2M1: 4,
}  # fmt: skip
_CPU_PRODUCTS = ("MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulNBits")
_FLOAT8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)
_INT4 = (TensorProto.INT4, TensorProto.UINT4)
_FP4 = (TensorProto.FLOAT4E2M1,)


@dataclass(frozen=True)
class Tensor:
    """An input or output. dims: a number, or the name of a dynamic axis; type: a TensorProto element type."""

    name: str
    type: int
    dims: tuple[int | str, ...]

    def elements(self, axes: dict[str, int]) -> int:
        """How many values it has with these axis lengths."""
        count = 1
        for dim in self.dims:
            count *= axes[dim] if isinstance(dim, str) else dim
        return count

    def bytes(self, axes: dict[str, int]) -> int:
        """How many bytes it takes with these axis lengths."""
        return self.elements(axes) * _BITS[self.type] // 8


@dataclass(frozen=True)
class Graph:
    """One graph, its weights left where they are.

    types: every element type that occurs in its inputs, outputs and weights; weight_bytes: the size of the weights
    """

    path: Path
    model: onnx.ModelProto
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    types: frozenset[int]
    weight_bytes: int
    opset: int

    @property
    def axes(self) -> list[str]:
        """The dynamic axes' names, in order of appearance."""
        return list(dict.fromkeys(dim for tensor in self.inputs for dim in tensor.dims if isinstance(dim, str)))

    @property
    def dispatches(self) -> int:
        """How many expert dispatch nodes it has."""
        return sum((node.domain, node.op_type) == (DOMAIN, "ExpertDispatch") for node in self.model.graph.node)

    @property
    def int4_products(self) -> int:
        """How many products the plugin can take in place of TensorRT's own int4."""
        return len(group_matmuls(self.model))


def read(path: Path) -> Graph:
    """Reads a graph without its weights.

    Raises:
        ExportError: the file is not an ONNX model
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own errors
        raise ExportError(f"{path} is not a readable ONNX file ({error}); export the engine again.") from error
    graph = model.graph
    inputs, outputs = tuple(map(_tensor, graph.input)), tuple(map(_tensor, graph.output))
    weight_bytes = 0
    for weight in graph.initializer:
        count = 1
        for dim in weight.dims:
            count *= dim
        weight_bytes += count * weight_bits(weight) // 8
    constants = [a.t.data_type for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    casts = [a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"]
    four = {TensorProto.FLOAT4E2M1} if has_fp4(model) else set()
    types = four | {tensor.type for tensor in inputs + outputs} | {weight.data_type for weight in graph.initializer}
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    return Graph(path, model, inputs, outputs, frozenset({*types, *constants, *casts}), weight_bytes, opset)


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    return Tensor(value.name, kind.elem_type, tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim))


def weight_bits(weight: onnx.TensorProto) -> int:
    """Bits of one value of a weight."""
    return _BITS.get(weight.data_type, 32)


def check_types(graph: Graph, sm: int) -> None:
    """Raises ExportError where the graph has values that TensorRT, or this GPU, does not compute with.

    sm: the compute capability as a number, such as 86
    """
    nodes = [*graph.model.graph.node, *(node for function in graph.model.functions for node in function.node)]
    if any(node.domain != DOMAIN and node.op_type in _CPU_PRODUCTS for node in nodes):
        raise ExportError(
            f"{graph.path.name} multiplies bytes row by row (int8), which is for CPUs and which TensorRT does not take; export "
            "the engine with --precision fp16."
        )
    if TensorProto.DOUBLE in graph.types:
        raise ExportError(
            f"{graph.path.name} has float64 values, which make its sums exact on a CPU and which TensorRT does not take; "
            "export the engine with --precision fp16, or with --precision fp32 --equality numerical."
        )
    for types, name, minimum in (
        ((TensorProto.BFLOAT16,), "bfloat16", 80),
        (_INT4, "int4", 80),
        (_FLOAT8, "float8", 89),
        (_FP4, "float4 (NVFP4)", 100),
    ):
        if graph.types.intersection(types) and sm < minimum:
            raise ExportError(
                f"{graph.path.name} has {name} values, which need a GPU of sm{minimum} or newer, and sm{sm} is asked for; "
                "export the engine with --precision fp16."
            )


def parsed_model(graph: Graph, plugin: bool, opset_23: bool, own_int4: bool = False) -> onnx.ModelProto:
    """The model as a parser takes it: no functions, and primitives where it lacks opset 23's operators.

    own_int4: with the plugin's products of int4 weights in place of TensorRT's own

    With `plugin` every parser looks for the plugin of the function's name: with the bodies in the file TensorRT 10.3 - 10.6 and,
    without a namespace on the node, 10.15 and later would take those. Without it each function's body is in its place.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    if has_fp4(model):
        model = standard_fp4(model)
    if plugin:
        del model.functions[:]
    else:
        if model.functions:
            model = inliner.inline_local_functions(model)
        kept = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
        del model.opset_import[:]
        model.opset_import.extend(kept)
    if own_int4:
        model = with_plugin(model)
    return model if opset_23 else lower(model)
