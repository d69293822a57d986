"""The two graph calls of a round, with their buffers: allocated once a shape, bound without copies."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from jakiro_runtime.backends import Array, Binding, Graph, Memory
from jakiro_runtime.decoding.kv_cache import KVCache, SequenceBuffer
from jakiro_runtime.errors import EngineError
from jakiro_runtime.format.manifest import Manifest

_KEPT = 24  # bound shapes kept for re-use, those used last


class BoundShape:
    """A binding for one shape, and the arrays it reads and writes.

    inputs: what is filled before a call, on the host
    outputs: what is read after it
    features: the target's output or the draft's input, [1, batch, 1, rows, hidden], in the backend's memory
    places: 0, 1, ... for each row
    """

    def __init__(
        self, graph: Graph, cache: KVCache, inputs: dict[str, np.ndarray], outputs: dict[str, Array], features: Array, given: bool
    ):
        self.inputs, self.outputs, self.features = inputs, outputs, features
        self.places = np.arange(features.shape[3])
        self.new_keys, self.new_values, scratch = cache.scratch(features.shape[3])
        hidden = {"hidden_states": features[0, :, 0]}
        read, written = (hidden, {}) if given else ({}, hidden)
        self._binding: Binding = graph.bind({**inputs, **read, **cache.inputs()}, {**outputs, **written, **scratch})

    def run(self) -> float:
        """Run the graph; the seconds it took."""
        started = time.perf_counter()
        self._binding.run()
        return time.perf_counter() - started


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
        dtypes = (graph.inputs["past_key.0"], graph.inputs["past_value.0"])
        self.cache = KVCache(names, model.num_kv_heads, model.head_dim, dtypes, batch, self._memory)
        self._graph, self._model = graph, model
        self.seconds = 0.0
        self._shaped: dict[tuple[int, int, bool], BoundShape] = {}
        self._current: BoundShape | None = None

    def _shape(self, rows: int, selected: int, logits: bool) -> BoundShape:
        key = (rows, selected, logits)
        if key in self._shaped:
            self._shaped[key] = self._shaped.pop(key)  # the last one used comes last
        else:
            if len(self._shaped) >= _KEPT:
                self._shaped.pop(next(iter(self._shaped)))
            batch, memory = len(self.cache.lengths), self._memory
            integers, model = np.dtype(np.int64), self._model
            inputs = {
                "input_ids": memory.staging((batch, rows), integers),
                "position_ids": memory.staging((batch, rows), integers),
                "tree_mask": memory.staging((batch, rows, rows), np.dtype(bool)),
                "past_length": memory.staging((batch,), integers),
                "logit_rows": memory.staging((batch, selected), integers),
            }
            outputs: dict[str, Array] = {"next_tokens": memory.staging((batch, selected), integers)}
            if logits:
                outputs["logits"] = memory.zeros((batch, selected, model.vocab_size), self._graph.outputs["logits"])
            features = memory.zeros((1, batch, 1, rows, model.hidden_size), self._graph.outputs["hidden_states"])
            self._shaped[key] = BoundShape(self._graph, self.cache, inputs, outputs, features, False)
        return self._shaped[key]

    def run(
        self,
        tokens: np.ndarray | Sequence[Sequence[int]],
        depths: np.ndarray | Sequence[Sequence[int]],
        mask: np.ndarray | Sequence[np.ndarray],
        logits: bool,
        last: np.ndarray | None = None,
    ) -> None:
        """Process rows behind the cache. Results are read through the properties below.

        Args:
            tokens: [batch, rows]
            depths: [batch, rows], positions relative to each sequence's cached length
            mask: [batch, rows, rows] bool, who sees whom; a row that is padding must see itself
            logits: give the logits too
            last: [batch], choose behind this row of each sequence alone; None: behind every row
        """
        rows, lengths = len(tokens[0]), self.cache.lengths
        padded = max(2, rows)
        if self.cache.reserve(max(lengths.tolist()) + padded):
            self._shaped.clear()
        shaped = self._current = self._shape(padded, padded if last is None else 2, logits)
        inputs = shaped.inputs
        inputs["input_ids"][:, :rows] = tokens
        np.add(depths, lengths[:, None], out=inputs["position_ids"][:, :rows])
        for number, seen in enumerate(mask):
            inputs["tree_mask"][number, :rows, :rows] = seen
        if padded > rows:
            inputs["tree_mask"][:, rows:, rows:] = True
        inputs["past_length"][:] = lengths
        inputs["logit_rows"][:] = shaped.places if last is None else last[:, None]
        self.seconds += shaped.run()

    @property
    def next_tokens(self) -> Array:
        """The best next token behind each selected row, [batch, selected], on the host."""
        assert self._current is not None
        return self._current.outputs["next_tokens"]

    @property
    def logits(self) -> Array:
        """[batch, selected, vocab] in the backend's memory; only where the call was made to give them."""
        assert self._current is not None
        return self._current.outputs["logits"]

    @property
    def features(self) -> Array:
        """What the head continues from, [1, batch, 1, rows, hidden] in the backend's memory."""
        assert self._current is not None
        return self._current.features

    def commit(self, rows: Sequence[Sequence[int]]) -> None:
        """Keep the new keys and values of these rows of the last call, for each sequence."""
        assert self._current is not None
        self.cache.commit(self._current.new_keys, self._current.new_values, rows)

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop every other sequence."""
        self.cache.keep(sequences)
        self._shaped.clear()
        self._current = None


class DraftRunner:
    """The drafting phase over the rows that were just accepted.

    features: the target's, of accepted rows that nothing was drafted behind yet; they never leave the backend's memory
    seconds: spent in the graph so far
    """

    def __init__(self, graph: Graph, manifest: Manifest, batch: int = 1, memory: Memory | None = None) -> None:
        draft, hidden = manifest.draft, manifest.model.hidden_size
        self._memory = memory or graph.memory()
        dtypes = (graph.inputs["past_key"], graph.inputs["past_value"])
        self.cache = KVCache([("past_key", "past_value")], draft.num_kv_heads, draft.head_dim, dtypes, batch, self._memory)
        self.features = SequenceBuffer(self._memory, 1, batch, 1, hidden, [graph.inputs["hidden_states"]])
        self._graph, self._draft = graph, draft
        self.seconds = 0.0
        self._shaped: dict[int, BoundShape] = {}

    def _shape(self, rows: int) -> BoundShape:
        if rows not in self._shaped:
            nodes, batch, memory = self._draft.nodes, len(self.cache.lengths), self._memory
            integers, features = np.dtype(np.int64), self.features.arrays[0]
            inputs = {
                "input_ids": memory.staging((batch, rows), integers),
                "position_ids": memory.staging((batch, rows), integers),
                "last_row": memory.staging((batch,), integers),
                "past_length": memory.staging((batch,), integers),
            }
            outputs: dict[str, Array] = {
                "tree_tokens": memory.staging((batch, nodes), integers),
                "tree_parents": memory.staging((batch, nodes), integers),
                "tree_scores": memory.zeros((batch, nodes), self._graph.outputs["tree_scores"]),
            }
            hidden = memory.zeros((1, batch, 1, rows, features.shape[-1]), features.dtype)
            self._shaped[rows] = BoundShape(self._graph, self.cache, inputs, outputs, hidden, True)
        return self._shaped[rows]

    def accept(self, features: Array, rows: Sequence[Sequence[int]]) -> None:
        """Remember the features of accepted rows, behind which the next tree is drafted.

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

    def run(self, tokens: Sequence[Sequence[int]], firsts: Sequence[int], padded: int) -> tuple[np.ndarray, np.ndarray, Array]:
        """Draft behind accepted rows that continue the cache, and keep their keys.

        Args:
            tokens: for each sequence, the token after each row; none where a sequence waits for the others
            firsts: for each sequence, which row of `features` they begin at
            padded: rows of the bound shape, at least as many; few shapes are kept

        Returns:
            tree_tokens, tree_parents: [batch, nodes] on the host; tree_scores: as many, in the backend's memory. Valid until
            the next call
        """
        lengths = self.cache.lengths
        if self.cache.reserve(max(lengths.tolist()) + padded):
            self._shaped.clear()
        shaped = self._shape(padded)
        inputs = shaped.inputs
        for number, after in enumerate(tokens):
            inputs["input_ids"][number, : len(after)] = after
            inputs["last_row"][number] = max(0, len(after) - 1)
        np.add(lengths[:, None], shaped.places, out=inputs["position_ids"])
        inputs["past_length"][:] = lengths
        rows = [range(first, first + len(after)) for first, after in zip(firsts, tokens, strict=True)]
        self._memory.append([(self.features.arrays[0], shaped.features)], rows, [0] * len(rows))
        self.seconds += shaped.run()
        self.cache.commit(shaped.new_keys, shaped.new_values, [range(len(after)) for after in tokens])
        outputs = shaped.outputs
        return np.asarray(outputs["tree_tokens"]), np.asarray(outputs["tree_parents"]), outputs["tree_scores"]

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop every other sequence."""
        self.cache.keep(sequences)
        self.features.keep(sequences)
        self._shaped.clear()
