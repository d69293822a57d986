"""What passes do to graphs: find single consumers, add initializers, put one value in another's place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from jakiro_export.artifact.weights import LazyWeight, Weight


def lazy_weight(value: ir.Value | None) -> Weight | None:
    """The recipe of an initializer; None for anything else."""
    tensor = value.const_value if value is not None else None
    return tensor.weight if isinstance(tensor, LazyWeight) else None


def add_initializer(model: ir.Model, name: str, weight: Weight) -> ir.Value:
    """An initializer with a recipe; the one of that name where there is one."""
    existing = model.graph.initializers.get(name)
    if existing is not None:
        return existing
    return _register(model, name, LazyWeight(weight, name))


def add_int_constant(model: ir.Model, prefix: str, values: list[int]) -> ir.Value:
    """An int64 initializer [len(values)], one for all places that need these numbers under this prefix."""
    name = prefix + "_" + "_".join(str(value).replace("-", "m") for value in values)
    existing = model.graph.initializers.get(name)
    if existing is not None:
        return existing
    return _register(model, name, ir.Tensor(np.array(values, np.int64), name=name))


def _register(model: ir.Model, name: str, tensor: LazyWeight | ir.Tensor) -> ir.Value:
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def drop_unused_initializers(model: ir.Model) -> None:
    """Remove weights that no node reads any more."""
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]


def only_consumer(value: ir.Value, op: str) -> ir.Node | None:
    """The node that alone uses a value, if it is of this kind."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == op else None


def replace(old: ir.Value, new: ir.Value) -> None:
    """Everything that read `old`, the graph's outputs too, reads `new`."""
    new.shape, new.type = old.shape, old.type
    if old.is_graph_output():
        new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
