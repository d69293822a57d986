"""From a torch module to an ONNX graph: names, axes and shapes are those of the graph's contract."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from jakiro_export.ops import registry
from jakiro_runtime.contract import AXES, BATCH, CAPACITY, FLOAT, ROWS, SELECTED, VALUE, GraphContract, TensorSpec

_EXAMPLE = {BATCH: 2, ROWS: 3, CAPACITY: 16, SELECTED: 4}  # lengths that differ, so that no two axes are taken for one


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """torch's name for a NumPy element type, bfloat16 included."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def _arguments(contract: GraphContract) -> list[list[TensorSpec]]:
    """The arguments of a module's `forward`: the contract's inputs in order, those numbered by layer as one."""
    return [list(group) for _, group in groupby(contract.inputs, key=lambda spec: spec.name.partition(".")[0])]


def _is_list(argument: list[TensorSpec]) -> bool:
    return "." in argument[0].name


def call_module(module: nn.Module, contract: GraphContract, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Call a module in eager torch as its graph is called, floats in float32. Every output, by name."""

    def tensor(spec: TensorSpec) -> Tensor:
        found = torch.from_numpy(np.array(inputs[spec.name]))
        return found.float() if found.is_floating_point() else found

    given = [[tensor(spec) for spec in specs] if _is_list(specs) else tensor(specs[0]) for specs in _arguments(contract)]
    return {name: value.numpy() for name, value in zip(contract.output_names, module(*given), strict=True)}


def trace(module: nn.Module, contract: GraphContract, dtype: torch.dtype, values: torch.dtype, opset: int) -> ir.Model:
    """A module's graph without weight values: initializers carry the parameters' names.

    Args:
        module: on the meta device; its `forward` takes the contract's inputs in order, those numbered by layer as one list
        dtype: of floating-point inputs
        values: of cached values
    """
    dtypes = {FLOAT: dtype, VALUE: values}
    axes = {name: torch.export.Dim(name) for name in AXES}

    def example(spec: TensorSpec) -> Tensor:
        kind = dtypes[spec.type] if spec.type in dtypes else getattr(torch, spec.type)
        return torch.empty(spec.shape(_EXAMPLE), dtype=kind, device="meta")

    arguments: list[Any] = []
    dynamic: list[Any] = []
    for specs in _arguments(contract):
        tensors = [example(spec) for spec in specs]
        lengths = [{place: axes[axis] for place, axis in spec.axes.items()} for spec in specs]
        arguments.append(tensors if _is_list(specs) else tensors[0])
        dynamic.append(lengths if _is_list(specs) else lengths[0])
    with torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(arguments),
            dynamo=True,
            optimize=False,
            verbose=False,
            custom_translation_table=registry.translations(),
            opset_version=opset,
            dynamic_shapes=tuple(dynamic),
            input_names=contract.input_names,
            output_names=contract.output_names,
        )
    assert program is not None
    return program.model
