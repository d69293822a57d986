"""The two graph calls of a round, with their buffers: allocated once a shape, bound without copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jakiro_runtime.backend import Binding, Graph
from jakiro_runtime.cache import KVCache
from jakiro_runtime.manifest import Manifest

_KEPT = 6  # bound shapes kept for re-use


class _Shaped:
    """A binding for one shape, and the arrays it reads and writes."""

    def __init__(self, graph: Graph, cache: KVCache, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], rows: int):
        self.inputs, self.outputs = inputs, outputs
        self.new_keys, self.new_values, scratch = cache.scratch(rows)
        self.binding: Binding = graph.bind({**inputs, **cache.inputs()}, {**outputs, **scratch})


class TargetCall:
    """The target over some rows: a prompt chunk, or a root and its tree.

    One row alone takes other matrix kernels than several do, so calls are padded to two rows: a row's result is then the same
    bit for bit in any call. Padding sees itself alone and is seen by nobody.
    """

    def __init__(self, graph: Graph, manifest: Manifest, logits: bool) -> None:
        model = manifest.model
        names = [(f"past_key.{n}", f"past_value.{n}") for n in range(model.num_layers)]
        dtypes = (graph.inputs["past_key.0"], graph.inputs["past_value.0"])
        self.cache = KVCache(names, model.num_kv_heads, model.head_dim, dtypes)
        self._graph, self._model, self._logits = graph, model, logits
        self._shaped: dict[tuple[int, int], _Shaped] = {}
        self._current: _Shaped | None = None

    def _shape(self, rows: int, selected: int) -> _Shaped:
        if (rows, selected) not in self._shaped:
            if len(self._shaped) >= _KEPT:
                self._shaped.pop(next(iter(self._shaped)))
            inputs = {
                "input_ids": np.zeros((1, rows), np.int64),
                "position_ids": np.zeros((1, rows), np.int64),
                "tree_mask": np.eye(rows, dtype=bool)[None],
                "past_length": np.zeros(1, np.int64),
                "logit_rows": np.zeros((1, selected), np.int64),
            }
            outputs = {
                "next_tokens": np.zeros((1, selected), np.int64),
                "hidden_states": np.zeros((1, rows, self._model.hidden_size), self._graph.outputs["hidden_states"]),
            }
            if self._logits:
                outputs["logits"] = np.zeros((1, selected, self._model.vocab_size), self._graph.outputs["logits"])
            self._shaped[rows, selected] = _Shaped(self._graph, self.cache, inputs, outputs, rows)
        return self._shaped[rows, selected]

    def run(self, tokens: np.ndarray, depths: np.ndarray, mask: np.ndarray, last_only: bool) -> None:
        """Process rows behind the cache. Results are read through the properties below.

        Args:
            tokens: [rows]
            depths: [rows], positions relative to the cache's length
            mask: [rows, rows] bool, who sees whom
            last_only: choose behind the last row alone; otherwise behind every row
        """
        rows = len(tokens)
        padded = max(2, rows)
        if self.cache.reserve(self.cache.length + padded):
            self._shaped.clear()
        shaped = self._current = self._shape(padded, 2 if last_only else padded)
        inputs = shaped.inputs
        inputs["input_ids"][0, :rows] = tokens
        np.add(depths, self.cache.length, out=inputs["position_ids"][0, :rows])
        inputs["tree_mask"][0, :rows, :rows] = mask
        inputs["past_length"][0] = self.cache.length
        inputs["logit_rows"][0] = rows - 1 if last_only else np.minimum(np.arange(padded), rows - 1)
        shaped.binding.run()

    @property
    def next_tokens(self) -> np.ndarray:
        """The best next token behind each selected row."""
        assert self._current is not None
        return self._current.outputs["next_tokens"][0]

    @property
    def logits(self) -> np.ndarray:
        """[selected, vocab]; only where the call was made to fetch them."""
        assert self._current is not None
        return self._current.outputs["logits"][0]

    @property
    def features(self) -> np.ndarray:
        """[rows, hidden], what the head continues from."""
        assert self._current is not None
        return self._current.outputs["hidden_states"][0]

    def commit(self, rows: Sequence[int]) -> None:
        """Keep the new keys and values of these rows of the last call."""
        assert self._current is not None
        self.cache.commit(self._current.new_keys, self._current.new_values, rows)


class DraftCall:
    """The drafting phase over the rows that were just accepted."""

    def __init__(self, graph: Graph, manifest: Manifest) -> None:
        draft = manifest.draft
        dtypes = (graph.inputs["past_key"], graph.inputs["past_value"])
        self.cache = KVCache([("past_key", "past_value")], draft.num_kv_heads, draft.head_dim, dtypes)
        self._graph, self._draft, self._hidden = graph, draft, manifest.model.hidden_size
        self._shaped: dict[int, _Shaped] = {}

    def _shape(self, rows: int) -> _Shaped:
        if rows not in self._shaped:
            nodes = self._draft.nodes
            inputs = {
                "input_ids": np.zeros((1, rows), np.int64),
                "hidden_states": np.zeros((1, rows, self._hidden), self._graph.inputs["hidden_states"]),
                "position_ids": np.zeros((1, rows), np.int64),
                "last_row": np.zeros(1, np.int64),
                "past_length": np.zeros(1, np.int64),
            }
            outputs = {
                "tree_tokens": np.zeros((1, nodes), np.int64),
                "tree_parents": np.zeros((1, nodes), np.int64),
                "tree_scores": np.zeros((1, nodes), self._graph.outputs["tree_scores"]),
            }
            self._shaped[rows] = _Shaped(self._graph, self.cache, inputs, outputs, rows)
        return self._shaped[rows]

    def run(self, tokens: np.ndarray | list[int], features: np.ndarray, padded: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draft behind rows that continue the cache, and keep their keys.

        Args:
            tokens: [rows], the token after each feature
            features: [rows, hidden], the target's
            padded: rows of the bound shape, at least as many; few shapes are kept

        Returns:
            tree_tokens, tree_parents, tree_scores: [nodes] each, valid until the next call
        """
        rows = len(tokens)
        if self.cache.reserve(self.cache.length + padded):
            self._shaped.clear()
        shaped = self._shape(padded)
        inputs = shaped.inputs
        inputs["input_ids"][0, :rows] = tokens
        inputs["hidden_states"][0, :rows] = features
        inputs["position_ids"][0] = np.arange(self.cache.length, self.cache.length + padded)
        inputs["last_row"][0], inputs["past_length"][0] = rows - 1, self.cache.length
        shaped.binding.run()
        self.cache.commit(shaped.new_keys, shaped.new_values, range(rows))
        outputs = shaped.outputs
        return outputs["tree_tokens"][0], outputs["tree_parents"][0], outputs["tree_scores"][0]
