"""A graph bound for one shape: the buffers it reads and writes, allocated once and never copied."""

from __future__ import annotations

import time

import numpy as np

from jakiro_runtime.backends import Array, Binding, Graph
from jakiro_runtime.decoding.kv_cache import KVCache
from jakiro_runtime.errors import EngineError, one_line


class BoundShape:
    """A binding for one shape, and its arrays.

    Args:
        name: of the features, an output of the target and an input of the draft
        features: [1, batch, 1, rows, width], in the backend's memory
        reads_features: whether the graph reads them (the draft) or writes them (the target)

    inputs: what is filled before a call, on the host
    outputs: what is read after it
    positions: 0, 1, ... for each row
    new_keys, new_values: the call's new rows, [layers, batch, kv_heads, rows, head_dim], in the backend's memory
    """

    def __init__(
        self,
        graph: Graph,
        cache: KVCache,
        inputs: dict[str, np.ndarray],
        outputs: dict[str, Array],
        name: str,
        features: Array,
        reads_features: bool,
    ) -> None:
        self.inputs, self.outputs, self.features = inputs, outputs, features
        self.positions = np.arange(features.shape[3])
        self.new_keys, self.new_values, scratch = cache.scratch(features.shape[3])
        hidden = {name: features[0, :, 0]}
        read, written = (hidden, {}) if reads_features else ({}, hidden)
        self._binding: Binding = graph.bind({**inputs, **read, **cache.inputs()}, {**outputs, **written, **scratch})

    def run(self) -> float:
        """Run the graph; the seconds it took. Raises EngineError where the backend fails."""
        started = time.perf_counter()
        try:
            self._binding.run()
        except EngineError:
            raise
        except Exception as error:  # each backend raises types of its own
            raise EngineError(
                f"The engine's graph failed: {one_line(error)}; there may be too little memory, or the engine is damaged: try a "
                "shorter prompt, or export it again."
            ) from error
        return time.perf_counter() - started
