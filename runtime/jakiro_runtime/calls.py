"""The two graph calls of a round, with their buffers: allocated once a shape, bound without copies."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from jakiro_runtime.backend import Binding, Graph
from jakiro_runtime.cache import KVCache
from jakiro_runtime.manifest import Manifest

_KEPT = 24  # bound shapes kept for re-use, those used last


class _Shaped:
    """A binding for one shape, and the arrays it reads and writes."""

    def __init__(self, graph: Graph, cache: KVCache, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], rows: int):
        self.inputs, self.outputs = inputs, outputs
        self.new_keys, self.new_values, scratch = cache.scratch(rows)
        self._binding: Binding = graph.bind({**inputs, **cache.inputs()}, {**outputs, **scratch})

    def run(self) -> float:
        """Run the graph; the seconds it took."""
        started = time.perf_counter()
        self._binding.run()
        return time.perf_counter() - started


class TargetCall:
    """The target over some rows of every sequence: prompt chunks, or roots and their trees.

    One row alone takes other matrix kernels than several do, so calls are padded to two rows: a row's result is then the same
    bit for bit in any call. Padding sees itself alone and is seen by nobody.

    seconds: spent in the graph so far
    """

    def __init__(self, graph: Graph, manifest: Manifest, batch: int = 1) -> None:
        model = manifest.model
        names = [(f"past_key.{n}", f"past_value.{n}") for n in range(model.num_layers)]
        dtypes = (graph.inputs["past_key.0"], graph.inputs["past_value.0"])
        self.cache = KVCache(names, model.num_kv_heads, model.head_dim, dtypes, batch)
        self._graph, self._model = graph, model
        self.seconds = 0.0
        self._shaped: dict[tuple[int, int, bool], _Shaped] = {}
        self._current: _Shaped | None = None

    def _shape(self, rows: int, selected: int, logits: bool) -> _Shaped:
        key = (rows, selected, logits)
        if key in self._shaped:
            self._shaped[key] = self._shaped.pop(key)  # the last one used comes last
        else:
            if len(self._shaped) >= _KEPT:
                self._shaped.pop(next(iter(self._shaped)))
            batch = len(self.cache.lengths)
            inputs = {
                "input_ids": np.zeros((batch, rows), np.int64),
                "position_ids": np.zeros((batch, rows), np.int64),
                "tree_mask": np.zeros((batch, rows, rows), bool),
                "past_length": np.zeros(batch, np.int64),
                "logit_rows": np.zeros((batch, selected), np.int64),
            }
            outputs = {
                "next_tokens": np.zeros((batch, selected), np.int64),
                "hidden_states": np.zeros((batch, rows, self._model.hidden_size), self._graph.outputs["hidden_states"]),
            }
            if logits:
                outputs["logits"] = np.zeros((batch, selected, self._model.vocab_size), self._graph.outputs["logits"])
            self._shaped[key] = _Shaped(self._graph, self.cache, inputs, outputs, rows)
        return self._shaped[key]

    def run(
        self, tokens: np.ndarray, depths: np.ndarray, mask: np.ndarray, counts: np.ndarray, last_only: bool, logits: bool
    ) -> None:
        """Process rows behind the cache. Results are read through the properties below.

        Args:
            tokens: [batch, rows]
            depths: [batch, rows], positions relative to each sequence's cached length
            mask: [batch, rows, rows] bool, who sees whom; a row that is padding must see itself
            counts: [batch], rows of each sequence; the others are padding
            last_only: choose behind each sequence's last row alone; otherwise behind every row
            logits: fetch the logits too
        """
        rows = tokens.shape[1]
        padded = max(2, rows)
        if self.cache.reserve(int(self.cache.lengths.max()) + padded):
            self._shaped.clear()
        shaped = self._current = self._shape(padded, 2 if last_only else padded, logits)
        inputs = shaped.inputs
        inputs["input_ids"][:, :rows] = tokens
        np.add(depths, self.cache.lengths[:, None], out=inputs["position_ids"][:, :rows])
        inputs["tree_mask"][:, :rows, :rows] = mask
        if padded > rows:
            inputs["tree_mask"][:, rows:, rows:] = True
        inputs["past_length"][:] = self.cache.lengths
        last = np.maximum(counts - 1, 0)[:, None]
        inputs["logit_rows"][:] = last if last_only else np.minimum(np.arange(padded), last)
        self.seconds += shaped.run()

    def _output(self, name: str) -> np.ndarray:
        assert self._current is not None
        return self._current.outputs[name]

    @property
    def next_tokens(self) -> np.ndarray:
        """The best next token behind each selected row, [batch, selected]."""
        return self._output("next_tokens")

    @property
    def logits(self) -> np.ndarray:
        """[batch, selected, vocab]; only where the call was made to fetch them."""
        return self._output("logits")

    @property
    def features(self) -> np.ndarray:
        """[batch, rows, hidden], what the head continues from."""
        return self._output("hidden_states")

    def commit(self, rows: Sequence[Sequence[int]]) -> None:
        """Keep the new keys and values of these rows of the last call, for each sequence."""
        assert self._current is not None
        self.cache.commit(self._current.new_keys, self._current.new_values, rows)

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop every other sequence."""
        self.cache.keep(sequences)
        self._shaped.clear()
        self._current = None


class DraftCall:
    """The drafting phase over the rows that were just accepted. `seconds`: spent in the graph so far."""

    def __init__(self, graph: Graph, manifest: Manifest, batch: int = 1) -> None:
        draft = manifest.draft
        dtypes = (graph.inputs["past_key"], graph.inputs["past_value"])
        self.cache = KVCache([("past_key", "past_value")], draft.num_kv_heads, draft.head_dim, dtypes, batch)
        self._graph, self._draft, self._hidden = graph, draft, manifest.model.hidden_size
        self.seconds = 0.0
        self._shaped: dict[int, _Shaped] = {}

    def _shape(self, rows: int) -> _Shaped:
        if rows not in self._shaped:
            nodes, batch = self._draft.nodes, len(self.cache.lengths)
            inputs = {
                "input_ids": np.zeros((batch, rows), np.int64),
                "hidden_states": np.zeros((batch, rows, self._hidden), self._graph.inputs["hidden_states"]),
                "position_ids": np.zeros((batch, rows), np.int64),
                "last_row": np.zeros(batch, np.int64),
                "past_length": np.zeros(batch, np.int64),
            }
            outputs = {
                "tree_tokens": np.zeros((batch, nodes), np.int64),
                "tree_parents": np.zeros((batch, nodes), np.int64),
                "tree_scores": np.zeros((batch, nodes), self._graph.outputs["tree_scores"]),
            }
            self._shaped[rows] = _Shaped(self._graph, self.cache, inputs, outputs, rows)
        return self._shaped[rows]

    def run(
        self, tokens: Sequence[Sequence[int]], features: Sequence[np.ndarray], padded: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draft behind rows that continue the cache, and keep their keys.

        Args:
            tokens: for each sequence, the token after each feature; none where a sequence waits for the others
            features: for each sequence [rows, hidden], the target's
            padded: rows of the bound shape, at least as many; few shapes are kept

        Returns:
            tree_tokens, tree_parents, tree_scores: [batch, nodes] each, valid until the next call
        """
        if self.cache.reserve(int(self.cache.lengths.max()) + padded):
            self._shaped.clear()
        shaped = self._shape(padded)
        inputs = shaped.inputs
        for number, (after, rows) in enumerate(zip(tokens, features, strict=True)):
            inputs["input_ids"][number, : len(after)] = after
            inputs["hidden_states"][number, : len(after)] = rows
            inputs["last_row"][number] = max(0, len(after) - 1)
        np.add(self.cache.lengths[:, None], np.arange(padded), out=inputs["position_ids"])
        inputs["past_length"][:] = self.cache.lengths
        self.seconds += shaped.run()
        self.cache.commit(shaped.new_keys, shaped.new_values, [range(len(after)) for after in tokens])
        outputs = shaped.outputs
        return outputs["tree_tokens"], outputs["tree_parents"], outputs["tree_scores"]

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop every other sequence."""
        self.cache.keep(sequences)
        self._shaped.clear()
