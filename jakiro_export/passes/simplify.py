"""From a traced graph to the one that is written: weights bound, shapes made static where they are, projections fused.

No pass reads a weight. Weights are recipes (`jakiro_export.artifact.weights`) until the file is written.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common

from jakiro_export.artifact.weights import LazyWeight, Transposed, Weight, stacked
from jakiro_export.errors import ExportError

_SMALL = 1024  # constants up to this many bytes are folded; no weight is


def bind(model: ir.Model, weights: Mapping[str, Weight]) -> None:
    """Give every initializer of a traced graph its recipe, by name.

    Raises:
        ExportError: an initializer has no recipe, or one of another shape.
    """
    for name, value in model.graph.initializers.items():
        weight = weights.get(name)
        if weight is None:
            raise ExportError(f"The graph needs a tensor {name} that the checkpoint does not provide.")
        if tuple(value.shape or ()) != weight.shape:
            raise ExportError(
                f"Tensor {name} has shape {list(weight.shape)} in the checkpoint; its configuration asks for "
                f"{list(value.shape or ())}."
            )
        value.const_value = LazyWeight(weight, name)
        value.dtype = value.const_value.dtype


def simplify(model: ir.Model) -> None:
    """Fold small constants, remove what is double or dead, and write shapes that are known as constants."""
    _transpose_weights(model)
    onnxscript.optimizer.optimize_ir(model, input_size_limit=_SMALL, output_size_limit=_SMALL)
    _constant_shapes(model)
    for each in (
        common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ):
        each(model)


def lazy(value: ir.Value | None) -> Weight | None:
    """The recipe of an initializer; None for anything else."""
    tensor = value.const_value if value is not None else None
    return tensor.weight if isinstance(tensor, LazyWeight) else None


def add_initializer(model: ir.Model, name: str, weight: Weight) -> ir.Value:
    """An initializer with a recipe; the one of that name where there is one."""
    existing = model.graph.initializers.get(name)
    if existing is not None:
        return existing
    tensor = LazyWeight(weight, name)
    value = ir.Value(name=name, shape=ir.Shape(weight.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _transpose_weights(model: ir.Model) -> None:
    """A Linear's weight, transposed in the graph, becomes one that is written transposed."""
    for node in list(model.graph):
        weight = lazy(node.inputs[0]) if node.op_type == "Transpose" else None
        if weight is None or len(weight.shape) != 2:
            continue
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        transposed = add_initializer(model, f"{source.name}.T", Transposed(weight))
        output.replace_all_uses_with(transposed)
        model.graph.remove(node, safe=True)
    drop_unused_initializers(model)


def drop_unused_initializers(model: ir.Model) -> None:
    """Remove weights that no node reads any more."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]


def _constant_shapes(model: ir.Model) -> None:
    """Write the shape of a Reshape or Expand as a constant where only the input's own symbols occur in it.

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
        if inferred > 1 or (inferred and 0 in sizes):  # onnx's shape inference refuses 0 beside -1
            continue
        name = "shape_" + "_".join(str(size).replace("-", "m") for size in sizes)
        value = model.graph.initializers.get(name)
        if value is None:
            tensor = ir.Tensor(np.array(sizes, np.int64), name=name)
            value = ir.Value(name=name, shape=ir.Shape([len(sizes)]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor)
            model.graph.register_initializer(value)
        node.replace_input_with(1, value)
        node.attributes.pop("allowzero", None)


def fuse_projections(model: ir.Model) -> None:
    """Projections of the same input (query, key, value; gate and up) become one product, split afterwards."""
    graph = model.graph
    by_input: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "MatMul" and isinstance(lazy(node.inputs[1]), Transposed):
            assert node.inputs[0] is not None
            by_input.setdefault(node.inputs[0], []).append(node)
    for data, nodes in by_input.items():
        if len(nodes) < 2:
            continue
        values = [node.inputs[1] for node in nodes]
        weights = [weight for weight in map(lazy, values) if weight is not None]
        widths = [weight.shape[1] for weight in weights]
        name = "+".join(str(value.name) for value in values if value is not None)
        fused = add_initializer(model, name, stacked(weights))
        product = ir.node("MatMul", [data, fused])
        split = ir.node(
            "Split",
            [product.outputs[0], _int_constant(model, widths)],
            attributes={"axis": -1},
            num_outputs=len(nodes),
        )
        graph.insert_before(nodes[0], [product, split])
        for node, output in zip(nodes, split.outputs, strict=True):
            output.shape, output.type, output.name = node.outputs[0].shape, node.outputs[0].type, node.outputs[0].name
            node.outputs[0].replace_all_uses_with(output)
            node.outputs[0].name = None
            graph.remove(node, safe=True)
    drop_unused_initializers(model)
    common.NameFixPass()(model)


def _int_constant(model: ir.Model, values: list[int]) -> ir.Value:
    name = "sizes_" + "_".join(map(str, values))
    existing = model.graph.initializers.get(name)
    if existing is not None:
        return existing
    tensor = ir.Tensor(np.array(values, np.int64), name=name)
    value = ir.Value(name=name, shape=ir.Shape([len(values)]), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def finish(model: ir.Model, name: str, functions: list[onnx.FunctionProto], metadata: Mapping[str, str]) -> None:
    """Name the graph, attach operator bodies, and say where it came from."""
    common.ClearMetadataAndDocStringPass()(model)
    model.graph.name = name
    model.producer_name = "jakiro-export"
    model.producer_version = metadata.get("jakiro_version", "")
    model.metadata_props.update(metadata)
    for proto in functions:
        function = ir.serde.deserialize_function(proto)
        model.functions[function.identifier()] = function
        model.graph.opset_imports[function.domain] = 1
    common.TopologicalSortPass()(model)
