"""What the runtime asks of an inference library: open a graph, bind named buffers, run.

A backend is a module of this package with a function `open_graph`. Nothing else in the runtime knows which one is in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from jakiro_runtime.errors import UsageError

Buffers = Mapping[str, np.ndarray]
NAMES = ("onnxruntime",)


class Binding(Protocol):
    """A graph with every input and output bound to memory."""

    def rebind(self, inputs: Buffers) -> None:
        """Point some inputs at other memory; their shapes may differ."""

    def run(self) -> None:
        """Read the bound inputs, write the bound outputs."""


class Graph(Protocol):
    """An opened graph. `inputs` and `outputs` say the element type of each, by name."""

    inputs: Mapping[str, np.dtype]
    outputs: Mapping[str, np.dtype]

    def bind(self, inputs: Buffers, outputs: Buffers) -> Binding:
        """Bind C-contiguous arrays without copying them. The caller keeps them alive and shapes them right."""


def open_graph(path: Path, backend: str = "onnxruntime", threads: int | None = None) -> Graph:
    """Open one graph of an engine with the named backend.

    Raises:
        UsageError: no such backend
        EngineError: its package is not installed, or it refuses the graph
    """
    if backend not in NAMES:
        raise UsageError(f"There is no backend {backend!r}; known are: {', '.join(NAMES)}.")
    graph: Graph = import_module(f"jakiro_runtime.backend.{backend}").open_graph(path, threads)
    return graph
