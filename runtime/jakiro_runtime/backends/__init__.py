"""What the runtime asks of an inference library: open the graphs, keep their memory, bind named buffers, run.

A backend is a module of this package with a function `open_graphs`. Nothing else in the runtime knows which one is in use.

onnxruntime  ONNX Runtime on the CPU
cuda         ONNX Runtime on an NVIDIA GPU
tensorrt     engines that jakiro-build made: TensorRT, or TensorRT-RTX
host, cuda_memory    where tensors live: NumPy arrays, or a GPU's memory
gpu, built_engines   which GPU this machine has; which of a directory's engines are for it
evaluate             one call of a graph with NumPy arrays
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jakiro_runtime.errors import UsageError
from jakiro_runtime.format.manifest import Manifest

_MODULES = {"onnxruntime": "onnxruntime", "cuda": "cuda", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt"}
BACKENDS = ("auto", *_MODULES)


class Array(Protocol):
    """A NumPy array, or one in a GPU's memory that knows as much of NumPy's manners as the loop needs.

    Index with numbers, slices and an ellipsis, for a view; assign to such a view; `copy()` and `np.asarray` give its values on
    the host.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def nbytes(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...

    def __setitem__(self, index: Any, value: Any, /) -> None: ...

    def copy(self) -> np.ndarray: ...


Buffers = Mapping[str, Array]
Pair = tuple[Array, Array]


class Memory(Protocol):
    """Where the tensors of one conversation live. Not for several threads at once.

    longest_cache: the most slots a cache may have in the graphs that use it; None where any number will do
    """

    longest_cache: int | None

    def zeros(self, shape: Sequence[int], dtype: np.dtype) -> Array:
        """For what graphs read and write and the loop seldom looks at: caches, features, logits."""

    def layers(self, shape: Sequence[int], dtype: np.dtype) -> Array:
        """As `zeros`, [layers, ...]: every layer is contiguous and starts where the backend's graphs can take it."""

    def staging(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """For what the loop fills before a call or reads after it: token numbers, positions, masks. Zeros."""

    def append(self, pairs: Sequence[Pair], rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> None:
        """For each (source, target) and each sequence b: target[:, b, :, firsts[b] + i] = source[:, b, :, rows[b][i]].

        Args:
            pairs: arrays [layers, batch, heads, rows, width]; all sources of one shape, and all targets
            rows: for each sequence, ascending; may be empty
            firsts: [batch]
        """


class Binding(Protocol):
    """A graph with its inputs and outputs bound to memory."""

    def run(self) -> None:
        """Read the bound inputs, write the bound outputs."""


Dims = tuple[int | None, ...]


class Graph(Protocol):
    """An opened graph.

    inputs, outputs: the element type of each, by name
    dims: the length of each one's axes, by its name; None where it may vary
    """

    inputs: Mapping[str, np.dtype]
    outputs: Mapping[str, np.dtype]
    dims: Mapping[str, Dims]

    def memory(self) -> Memory:
        """The memory for a new conversation; the graphs of one engine may share it."""

    def bind(self, inputs: Buffers, outputs: Buffers) -> Binding:
        """Bind C-contiguous arrays of one `Memory`. The caller keeps them alive and shapes them right.

        Every input is bound; outputs that are not are not wanted.
        """


@dataclass(frozen=True)
class BackendOptions:
    """threads: for the CPU, None takes one per physical core; plugin: libjakiro_plugins.so, for GPUs that run TensorRT."""

    threads: int | None = None
    plugin: Path | None = None


class LoadedGraphs(NamedTuple):
    """An engine's two graphs.

    flexible_rows: a call may have any number of rows; False where the graphs were built for the tree's rows and a prompt's
    max_context: the most positions they were built for; None where only the model limits them
    """

    target: Graph
    draft: Graph
    flexible_rows: bool
    max_context: int | None = None


def select_backend(manifest: Manifest, name: str = "auto") -> str:
    """The backend to use: `name`, and for "auto" the engines that were built for this machine's GPU, else the CPU.

    Raises:
        UsageError: no such backend
    """
    if name not in BACKENDS:
        raise UsageError(f"There is no backend {name!r}; known are: {', '.join(BACKENDS)}.")
    if name != "auto":
        return name
    from jakiro_runtime.backends import built_engines

    mine = built_engines.for_this_gpu(manifest)
    return mine.runtime if mine is not None and built_engines.is_available(mine.runtime) else "onnxruntime"


def needed_files(manifest: Manifest, name: str) -> list[str]:
    """The files of an engine directory that a backend cannot do without, but for engines: it checks those that it loads.

    Engines hold the weights, so that the ONNX files need not be on the device.
    """
    graphs = manifest.graphs.values() if _MODULES[name] == "tensorrt" else ()
    return [file for file in manifest.files if not file.startswith(("tensorrt/", *graphs))]


def open_graphs(folder: Path, manifest: Manifest, name: str, options: BackendOptions) -> LoadedGraphs:
    """Open both graphs of an engine directory with the backend `name`, one of BACKENDS but "auto".

    Raises:
        EngineError: its package is not installed, there is no GPU for it, or it refuses the graphs
    """
    backend = import_module(f"jakiro_runtime.backends.{_MODULES[name]}")
    loaded: LoadedGraphs = backend.open_graphs(folder, manifest, name, options)
    return loaded


def runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Consecutive numbers among ascending ones: (place in `rows`, first number, how many)."""
    place, length = 0, len(rows)
    while place < length:
        count = 1
        while place + count < length and rows[place + count] == rows[place] + count:
            count += 1
        yield place, rows[place], count
        place += count


def append_runs(pairs: Sequence[Pair], rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> None:
    """`Memory.append` by assigning slices, one for each run of consecutive rows."""
    for number, kept in enumerate(rows):
        length = len(kept)
        one = length and kept[-1] - kept[0] == length - 1  # as a prompt's always and most paths
        for place, start, count in ((0, kept[0], length),) if one else runs(kept):
            to = firsts[number] + place
            for source, target in pairs:
                target[:, number, :, to : to + count] = source[:, number, :, start : start + count]
