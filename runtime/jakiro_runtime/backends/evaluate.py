"""One call of a graph with NumPy arrays, for checks and tools. The decoding loop binds its buffers once instead."""

from __future__ import annotations

import numpy as np

from jakiro_runtime.backends import Graph
from jakiro_runtime.backends.host import HostMemory
from jakiro_runtime.contract import GraphContract, new_rows_of

Arrays = dict[str, np.ndarray]


class GraphCall:
    """A graph as a function: named arrays in, named arrays out.

    Args:
        graph: opened by any backend
        contract: what it takes and gives
    """

    def __init__(self, graph: Graph, contract: GraphContract) -> None:
        self.graph, self.contract = graph, contract

    def __call__(self, **inputs: np.ndarray) -> Arrays:
        """Every output of one call; floating-point inputs are cast to the graph's types.

        Raises:
            ValueError: an input is missing or mis-shaped
        """
        lengths = self.contract.axis_lengths(inputs)
        given = {name: np.ascontiguousarray(inputs[name], self.graph.inputs[name]) for name in self.contract.input_names}
        shapes = {spec.name: spec.shape(lengths) for spec in self.contract.outputs}
        memory = self.graph.memory()
        if isinstance(memory, HostMemory):
            outputs = {name: np.empty(shape, self.graph.outputs[name]) for name, shape in shapes.items()}
            self.graph.bind(given, outputs).run()
            return outputs
        placed = {name: memory.zeros(values.shape, values.dtype) for name, values in given.items()}
        for name, array in placed.items():
            array[...] = given[name]
        found = {name: memory.zeros(shape, self.graph.outputs[name]) for name, shape in shapes.items()}
        self.graph.bind(placed, found).run()
        return {name: array.copy() for name, array in found.items()}

    def empty_cache(self, batch: int, capacity: int) -> Arrays:
        """Caches of zeros, [batch, kv_heads, capacity, head_dim] each, by input name."""
        axes = {"batch": batch, "capacity": capacity}
        return {spec.name: np.zeros(spec.shape(axes), self.graph.inputs[spec.name]) for spec in self.contract.caches}


def append_rows(cache: Arrays, outputs: Arrays, start: int, sequence: int = 0) -> None:
    """Append all new rows of one sequence to its caches, from slot `start` on."""
    for name, slots in cache.items():
        rows = outputs[new_rows_of(name)][sequence]
        slots[sequence, :, start : start + rows.shape[1]] = rows


def causal_mask(rows: int, batch: int = 1) -> np.ndarray:
    """The tree mask of a chain, [batch, rows, rows]: a row sees itself and the rows before it."""
    return np.broadcast_to(np.tri(rows, dtype=bool), (batch, rows, rows))
