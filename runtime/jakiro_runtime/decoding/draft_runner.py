"""Draft runner: the draft phase of a head, with its cache and the features that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jakiro_runtime.backends import Array, Graph, Memory
from jakiro_runtime.decoding.bound_shape import BoundShape
from jakiro_runtime.decoding.kv_cache import KVCache, SequenceBuffer
from jakiro_runtime.errors import EngineError
from jakiro_runtime.format.manifest import Manifest


class DraftOutput(NamedTuple):
    """The drafted trees; valid until the next call.

    tokens, parents: [batch, nodes] on the host
    scores: cumulative log-probabilities, [batch, nodes], in the backend's memory
    """

    tokens: np.ndarray
    parents: np.ndarray
    scores: Array


class DraftRunner:
    """The draft phase over the rows that were just accepted.

    features: the target's, of accepted rows that no tree was drafted after yet; they never leave the backend's memory
    seconds: spent in the graph so far
    """

    def __init__(self, graph: Graph, manifest: Manifest, batch: int = 1, memory: Memory | None = None) -> None:
        draft = manifest.draft
        self._memory = memory or graph.memory()
        self._graph, self._contract = graph, manifest.draft_contract
        caches = [spec.name for spec in self._contract.caches]
        names = list(zip(caches[: draft.num_layers], caches[draft.num_layers :], strict=True))
        dtypes = (graph.inputs[names[0][0]], graph.inputs[names[0][1]])
        self.cache = KVCache(names, draft.num_kv_heads, draft.head_dim, dtypes, batch, self._memory)
        given = self._contract.features
        self.features = SequenceBuffer(self._memory, 1, batch, 1, int(given.dims[-1]), [graph.inputs[given.name]])
        self.seconds = 0.0
        self._bound: dict[int, BoundShape] = {}

    def _bind(self, rows: int) -> BoundShape:
        if rows not in self._bound:
            memory, contract, store = self._memory, self._contract, self.features.arrays[0]
            given = contract.features
            axes = {"batch": len(self.cache.lengths), "rows": rows}
            inputs = {
                spec.name: memory.staging(spec.shape(axes), self._graph.inputs[spec.name])
                for spec in contract.inputs
                if spec not in (*contract.caches, given)
            }
            shapes = {spec.name: spec.shape(axes) for spec in contract.outputs}
            outputs: dict[str, Array] = {
                "tree_tokens": memory.staging(shapes["tree_tokens"], np.dtype(np.int64)),
                "tree_parents": memory.staging(shapes["tree_parents"], np.dtype(np.int64)),
                "tree_scores": memory.zeros(shapes["tree_scores"], self._graph.outputs["tree_scores"]),
            }
            features = memory.zeros((1, axes["batch"], 1, rows, store.shape[-1]), store.dtype)
            self._bound[rows] = BoundShape(self._graph, self.cache, inputs, outputs, given.name, features, reads_features=True)
        return self._bound[rows]

    def append_features(self, features: Array, rows: Sequence[Sequence[int]]) -> None:
        """Keep the features of accepted rows for the next draft.

        Args:
            features: a target call's
            rows: for each sequence, ascending

        Raises:
            EngineError: target and draft compute in different types, which no backend for GPUs converts
        """
        store = self.features
        if features.dtype != store.arrays[0].dtype and not isinstance(features, np.ndarray):
            raise EngineError(
                f"This engine's target gives its features in {features.dtype} and the draft takes {store.arrays[0].dtype}; for a "
                "GPU, export both with one --precision."
            )
        store.reserve(max(store.lengths.tolist()) + max(map(len, rows)))
        store.append([features], rows)

    def reserve(self, slots: int) -> None:
        """Make room in the cache; where it grows, every shape is bound again."""
        if self.cache.reserve(slots):
            self._bound.clear()

    def run(self, tokens: Sequence[Sequence[int]], firsts: Sequence[int], padded: int) -> DraftOutput:
        """Draft after accepted rows that continue the cache, and keep their keys and values.

        Args:
            tokens: for each sequence, the token after each row; none where a sequence waits for the others
            firsts: for each sequence, the row of `features` that they begin at
            padded: rows of the bound shape, at least as many; few shapes are kept
        """
        lengths = self.cache.lengths
        self.reserve(max(lengths.tolist()) + padded)
        bound = self._bind(padded)
        inputs = bound.inputs
        for number, after in enumerate(tokens):
            inputs["input_ids"][number, : len(after)] = after
            inputs["last_row"][number] = max(0, len(after) - 1)
        np.add(lengths[:, None], bound.positions, out=inputs["position_ids"])
        inputs["past_length"][:] = lengths
        rows = [range(first, first + len(after)) for first, after in zip(firsts, tokens, strict=True)]
        self._memory.append([(self.features.arrays[0], bound.features)], rows, [0] * len(rows))
        self.seconds += bound.run()
        self.cache.commit(bound.new_keys, bound.new_values, [range(len(after)) for after in tokens])
        outputs = bound.outputs
        return DraftOutput(np.asarray(outputs["tree_tokens"]), np.asarray(outputs["tree_parents"]), outputs["tree_scores"])

    def assemble(self, parts: Sequence[tuple[DraftRunner, int]]) -> None:
        """Hold copies of these sequences, (runner, number) each, in place of its own."""
        self.cache.assemble([(runner.cache, number) for runner, number in parts])
        self.features.assemble([(runner.features, number) for runner, number in parts])
        self._bound.clear()
