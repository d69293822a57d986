"""Target runner: one verification pass of the target, with its cache and its bound buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jakiro_runtime.backends import Array, Graph, Memory
from jakiro_runtime.decoding.bound_shape import BoundShape
from jakiro_runtime.decoding.kv_cache import KVCache
from jakiro_runtime.format.manifest import Manifest

_BOUND_SHAPES = 24  # kept for re-use, those used last


class TargetOutput(NamedTuple):
    """What a pass gave; valid until the next one.

    next_tokens: the best next token after each selected row, [batch, selected], on the host
    logits: [batch, selected, vocab] in the backend's memory; None where they were not asked for
    features: what the head continues from, [1, batch, 1, rows, width], in the backend's memory
    new_keys, new_values: of every row, [layers, batch, kv_heads, rows, head_dim], in the backend's memory
    """

    next_tokens: Array
    logits: Array | None
    features: Array
    new_keys: Array
    new_values: Array


class TargetRunner:
    """The target over some rows of every sequence: prompt chunks, or roots and their trees.

    One row alone takes other matrix kernels than several do, so calls are padded to two rows: a row's result is then the same
    bit for bit in any call. Padding sees itself alone and is seen by nobody.

    seconds: spent in the graph so far
    """

    def __init__(self, graph: Graph, manifest: Manifest, batch: int = 1, memory: Memory | None = None) -> None:
        model = manifest.model
        self._memory = memory or graph.memory()
        names = [(f"past_key.{n}", f"past_value.{n}") for n in range(model.num_layers)]
        dtypes = (graph.inputs[names[0][0]], graph.inputs[names[0][1]])
        self.cache = KVCache(names, model.num_kv_heads, model.head_dim, dtypes, batch, self._memory)
        self._graph, self._contract = graph, manifest.target_contract
        self.seconds = 0.0
        self._bound: dict[tuple[int, int, bool], BoundShape] = {}

    def _bind(self, rows: int, selected: int, logits: bool) -> BoundShape:
        key = (rows, selected, logits)
        if key in self._bound:
            self._bound[key] = self._bound.pop(key)  # the last one used comes last
        else:
            if len(self._bound) >= _BOUND_SHAPES:
                self._bound.pop(next(iter(self._bound)))
            memory, contract = self._memory, self._contract
            axes = {"batch": len(self.cache.lengths), "rows": rows, "selected": selected}
            inputs = {
                spec.name: memory.staging(spec.shape(axes), self._graph.inputs[spec.name])
                for spec in contract.inputs
                if spec not in contract.caches
            }
            shapes = {spec.name: spec.shape(axes) for spec in contract.outputs}
            outputs: dict[str, Array] = {"next_tokens": memory.staging(shapes["next_tokens"], np.dtype(np.int64))}
            if logits:
                outputs["logits"] = memory.zeros(shapes["logits"], self._graph.outputs["logits"])
            name = contract.features.name
            batch, _, width = shapes[name]
            features = memory.zeros((1, batch, 1, rows, width), self._graph.outputs[name])
            self._bound[key] = BoundShape(self._graph, self.cache, inputs, outputs, name, features, reads_features=False)
        return self._bound[key]

    def reserve(self, slots: int) -> None:
        """Make room in the cache; where it grows, every shape is bound again."""
        if self.cache.reserve(slots):
            self._bound.clear()

    def run(
        self,
        tokens: np.ndarray | Sequence[Sequence[int]],
        depths: np.ndarray | Sequence[Sequence[int]],
        mask: np.ndarray | Sequence[np.ndarray],
        logits: bool,
        last: np.ndarray | None = None,
    ) -> TargetOutput:
        """Process rows that continue the cache.

        Args:
            tokens: [batch, rows]
            depths: [batch, rows], positions relative to each sequence's cached length
            mask: [batch, rows, rows] bool, who sees whom; a row that is padding must see itself
            logits: give the logits too
            last: [batch], the only row of each sequence after which a token is chosen; None: after every row
        """
        rows, lengths = len(tokens[0]), self.cache.lengths
        padded = max(2, rows)
        self.reserve(max(lengths.tolist()) + padded)
        bound = self._bind(padded, padded if last is None else 2, logits)
        inputs = bound.inputs
        inputs["input_ids"][:, :rows] = tokens
        np.add(depths, lengths[:, None], out=inputs["position_ids"][:, :rows])
        for number, visible in enumerate(mask):
            inputs["tree_mask"][number, :rows, :rows] = visible
        if padded > rows:
            inputs["tree_mask"][:, rows:, rows:] = True
        inputs["past_length"][:] = lengths
        inputs["logit_rows"][:] = bound.positions if last is None else last[:, None]
        self.seconds += bound.run()
        outputs = bound.outputs
        return TargetOutput(outputs["next_tokens"], outputs.get("logits"), bound.features, bound.new_keys, bound.new_values)

    def commit(self, output: TargetOutput, rows: Sequence[Sequence[int]]) -> None:
        """Append the keys and values of these rows of a call to the cache, for each sequence; the others are dropped."""
        self.cache.commit(output.new_keys, output.new_values, rows)

    def assemble(self, parts: Sequence[tuple[TargetRunner, int]]) -> None:
        """Hold copies of these sequences, (runner, number) each, in place of its own."""
        self.cache.assemble([(runner.cache, number) for runner, number in parts])
        self._bound.clear()
