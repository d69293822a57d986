"""The shapes an engine is tuned for: a prompt's chunks, and the tree of a decoding round."""

from __future__ import annotations

from dataclasses import dataclass

from jakiro_export.errors import UsageError
from jakiro_export.tensorrt.graphs import Graph, Tensor
from jakiro_runtime.decoding.kv_cache import FIRST_BUCKET
from jakiro_runtime.format.manifest import Manifest

_OPT_CAPACITY = 1024
DEFAULT_CONTEXT = 4096  # attention's work and the caches' memory follow it
_STEP = 128


def last_capacity(context: int, rows: int) -> int:
    """The slots of a cache that holds `context` positions and the rows of one more call, in steps of 128."""
    return -(-(context + rows) // _STEP) * _STEP


@dataclass(frozen=True)
class Range:
    """The lengths of one axis, in TensorRT's words: the least, the one it is tuned for, the most."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Profile:
    """One optimization profile: a range for each dynamic axis, by its name in the graph."""

    name: str
    axes: dict[str, Range]

    def longest(self) -> dict[str, int]:
        """The longest of every axis."""
        return {axis: reach.max for axis, reach in self.axes.items()}

    def shapes(self, tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(min, opt, max) of an input's shape."""

        def shape(which: str) -> tuple[int, ...]:
            return tuple(getattr(self.axes[dim], which) if isinstance(dim, str) else dim for dim in tensor.dims)

        return shape("min"), shape("opt"), shape("max")


@dataclass(frozen=True)
class Limits:
    """What sessions may ask of an engine.

    batch: sequences at once; chunk: prompt rows in a call; context: positions, None for the model's but at most 4,096
    """

    batch: int = 1
    chunk: int = 128
    context: int | None = None

    def positions(self, manifest: Manifest) -> int:
        """The context that is built for."""
        return self.context or min(manifest.model.max_context, DEFAULT_CONTEXT)


def profiles(kind: str, graph: Graph, manifest: Manifest, limits: Limits) -> list[Profile]:
    """The two profiles of a graph. kind: "target" or "draft".

    The capacities are the buckets in which the runtime's cache grows, the last of them exact; it makes room for a call's rows,
    whichever of them stay. The runtime pads a call to two rows, so it asks for two choices behind a prompt's last row.

    Raises:
        UsageError: the graph has an axis that no profile has a range for, or the limits cannot be met
    """
    context = limits.positions(manifest)
    if context > manifest.model.max_context:
        raise UsageError(f"--max-context {context} is more than the {manifest.model.max_context} positions of this engine.")
    tree_rows = manifest.draft.nodes + 1 if kind == "target" else manifest.draft.levels + 1
    chunk = max(limits.chunk, tree_rows)
    last = last_capacity(context, chunk)
    common = {
        "batch": Range(1, 1, limits.batch),
        "capacity": Range(min(FIRST_BUCKET, last), min(_OPT_CAPACITY, last), last),
    }
    tree = {**common, "rows": Range(1, tree_rows, tree_rows), "selected": Range(1, tree_rows, tree_rows)}
    prompt = {**common, "rows": Range(1, chunk, chunk), "selected": Range(1, 2, 2)}
    known = [axis for axis in graph.axes if axis not in tree]
    if known:
        raise UsageError(f"{graph.path.name} has the dynamic axis {known[0]!r}; expected are {', '.join(tree)}.")
    return [Profile(name, {axis: ranges[axis] for axis in graph.axes}) for name, ranges in (("tree", tree), ("prompt", prompt))]
