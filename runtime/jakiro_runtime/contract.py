"""Graph contract: the inputs and outputs of an engine's two graphs, by name, shape and element type.

The exporter traces graphs that have exactly these, the runtime binds exactly these, and every check in between calls them through
`evaluate`. `docs/graph-contract.md` is this module in prose; a test holds the two equal.

    target   one pass over some rows of every sequence: a chunk of the prompt, or the root and the nodes of a draft tree
    draft    the whole draft phase: the accepted rows in, a tree of candidates out

Both read their key/value cache and never write it: they return the keys and values of the new rows, of which the runtime appends
the accepted ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

TARGET, DRAFT = "target", "draft"
# Features: of the last layer, after the final norm; or of several layers' inputs, side by side
HIDDEN, AUXILIARY = "hidden_states", "aux_hidden_states"
# Axes whose length differs from call to call
BATCH, ROWS, CAPACITY, SELECTED = "batch", "rows", "capacity", "selected"
AXES = (BATCH, ROWS, CAPACITY, SELECTED)
# Element types: FLOAT is the graph's own (float32, float16, bfloat16); cached values are double in bitwise float32 graphs
INT64, BOOL, FLOAT, VALUE = "int64", "bool", "float", "value"
_KINDS = {INT64: "i", BOOL: "b", FLOAT: "fu", VALUE: "fu"}  # as NumPy has them; a bfloat16 is an unsigned integer there


class TensorSpec(NamedTuple):
    """One input or output. dims: an axis name or a length each."""

    name: str
    dims: tuple[str | int, ...]
    type: str
    meaning: str

    @property
    def axes(self) -> dict[int, str]:
        """The axes of variable length, by position."""
        return {place: dim for place, dim in enumerate(self.dims) if isinstance(dim, str)}

    def shape(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape where the axes have these lengths."""
        return tuple(axes[dim] if isinstance(dim, str) else dim for dim in self.dims)

    def takes(self, lengths: Sequence[int | None]) -> bool:
        """Whether axes of these lengths may be its; None is one that varies."""
        return len(lengths) == len(self.dims) and all(
            isinstance(dim, str) or length in (None, dim) for length, dim in zip(lengths, self.dims, strict=True)
        )


@dataclass(frozen=True)
class GraphContract:
    """All inputs and outputs of one graph, in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def input_names(self) -> list[str]:
        return [each.name for each in self.inputs]

    @property
    def output_names(self) -> list[str]:
        return [each.name for each in self.outputs]

    @property
    def features(self) -> TensorSpec:
        """What the target gives and the draft reads: the features of every row."""
        return next(each for each in (*self.inputs, *self.outputs) if each.name in (HIDDEN, AUXILIARY))

    @property
    def caches(self) -> tuple[TensorSpec, ...]:
        """The inputs that hold cached keys and values."""
        return tuple(each for each in self.inputs if CAPACITY in each.dims)

    def axis_lengths(self, inputs: Mapping[str, Any]) -> dict[str, int]:
        """The lengths of all axes in a call with these arrays.

        Raises:
            ValueError: an input is missing, or has another shape than the others ask for
        """
        lengths: dict[str, int] = {}
        for spec in self.inputs:
            if spec.name not in inputs:
                raise ValueError(f"The {self.name} graph takes {spec.name}, which was not given.")
            shape = tuple(inputs[spec.name].shape)
            if len(shape) == len(spec.dims):
                for place, axis in spec.axes.items():
                    lengths.setdefault(axis, shape[place])
            if len(shape) != len(spec.dims) or shape != spec.shape(lengths):
                wanted = [lengths.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.dims]
                raise ValueError(f"{spec.name} of the {self.name} graph has shape {list(shape)}; {wanted} was expected.")
        return lengths

    def difference(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], dims: Mapping[str, Sequence[int | None]]
    ) -> str | None:
        """How a graph differs from this, in words; None where it does not.

        Args:
            inputs, outputs: the element type of each tensor, as NumPy has it
            dims: the lengths of each one's axes; None where one varies
        """
        for specs, types, verb in ((self.inputs, inputs, "takes"), (self.outputs, outputs, "gives")):
            for name in types:
                if name not in {spec.name for spec in specs}:
                    return f"it {verb} {name}, which is not expected"
            for spec in specs:
                if spec.name not in types:
                    return f"it {verb} no {spec.name}"
                if types[spec.name].kind not in _KINDS[spec.type]:
                    return f"its {spec.name} is {types[spec.name]}, and {spec.type} is expected"
                if not spec.takes(dims[spec.name]):
                    shown = ", ".join("?" if length is None else str(length) for length in dims[spec.name])
                    return f"its {spec.name} is [{shown}], and [{', '.join(map(str, spec.dims))}] is expected"
        return None


def new_rows_of(cache: str) -> str:
    """The output that holds a call's new rows for a cache input: past_key.3 -> new_key.3."""
    return cache.replace("past_", "new_", 1)


def _features(hidden: int, layers: Sequence[int], of_final: str, of_layers: str) -> TensorSpec:
    if not layers:
        return TensorSpec(HIDDEN, (BATCH, ROWS, hidden), FLOAT, of_final)
    return TensorSpec(AUXILIARY, (BATCH, ROWS, len(layers) * hidden), FLOAT, of_layers)


def target(
    layers: int, kv_heads: int, head_dim: int, hidden: int, vocab: int, feature_layers: Sequence[int] = ()
) -> GraphContract:
    """The target's contract for a model of these sizes, and a head that reads the inputs of these layers; none: the features
    after the final norm."""
    cache = (BATCH, kv_heads, CAPACITY, head_dim)
    new = (BATCH, kv_heads, ROWS, head_dim)
    return GraphContract(
        TARGET,
        inputs=(
            TensorSpec("input_ids", (BATCH, ROWS), INT64, "the token of each row"),
            TensorSpec("position_ids", (BATCH, ROWS), INT64, "its position in the sequence; siblings in a tree share one"),
            TensorSpec("tree_mask", (BATCH, ROWS, ROWS), BOOL, "[b, i, j]: row i attends to row j; a row always sees itself"),
            TensorSpec("past_length", (BATCH,), INT64, "filled slots of each sequence's cache; later slots hold anything"),
            TensorSpec("logit_rows", (BATCH, SELECTED), INT64, "the rows after which a next token is wanted"),
            *(TensorSpec(f"past_key.{n}", cache, FLOAT, f"cached keys of layer {n}, rotated") for n in range(layers)),
            *(TensorSpec(f"past_value.{n}", cache, VALUE, f"cached values of layer {n}") for n in range(layers)),
        ),
        outputs=(
            TensorSpec("logits", (BATCH, SELECTED, vocab), FLOAT, "scores of the next token after each selected row"),
            TensorSpec("next_tokens", (BATCH, SELECTED), INT64, "the best of them, the lowest id among equals"),
            _features(hidden, feature_layers, "features of every row, after the final norm", "the same, inputs of layers"),
            *(TensorSpec(f"new_key.{n}", new, FLOAT, f"keys of the new rows in layer {n}, rotated") for n in range(layers)),
            *(TensorSpec(f"new_value.{n}", new, VALUE, f"values of the new rows in layer {n}") for n in range(layers)),
        ),
    )


def draft(
    kv_heads: int, head_dim: int, hidden: int, nodes: int, feature_layers: Sequence[int] = (), layers: int = 1
) -> GraphContract:
    """The draft graph's contract for a head of these sizes and a tree of `nodes` nodes.

    Args:
        hidden: the target's width
        feature_layers: as `target` takes them
        layers: of the head; the caches of a head of several are numbered
    """
    numbers = [""] if layers == 1 else [f".{n}" for n in range(layers)]
    cache = (BATCH, kv_heads, CAPACITY, head_dim)
    new = (BATCH, kv_heads, ROWS, head_dim)
    return GraphContract(
        DRAFT,
        inputs=(
            TensorSpec("input_ids", (BATCH, ROWS), INT64, "the token after each accepted row"),
            _features(hidden, feature_layers, "the target's features of those rows", "the target's features of those rows"),
            TensorSpec("position_ids", (BATCH, ROWS), INT64, "the rows' positions; the token's is one more"),
            TensorSpec("last_row", (BATCH,), INT64, "the last accepted row; rows after it are padding"),
            TensorSpec("past_length", (BATCH,), INT64, "filled slots of each sequence's cache; later slots hold anything"),
            *(TensorSpec(f"past_key{n}", cache, FLOAT, "the head's cached keys, rotated") for n in numbers),
            *(TensorSpec(f"past_value{n}", cache, FLOAT, "the head's cached values") for n in numbers),
        ),
        outputs=(
            TensorSpec("tree_tokens", (BATCH, nodes), INT64, "the token of each node; parents precede their children"),
            TensorSpec("tree_parents", (BATCH, nodes), INT64, "the row of its parent: 0 is the root, n is node n - 1"),
            TensorSpec("tree_scores", (BATCH, nodes), FLOAT, "log-probability of its path under the head; float32"),
            *(TensorSpec(f"new_key{n}", new, FLOAT, "the head's keys of the given rows, rotated") for n in numbers),
            *(TensorSpec(f"new_value{n}", new, FLOAT, "the head's values of the given rows") for n in numbers),
        ),
    )
