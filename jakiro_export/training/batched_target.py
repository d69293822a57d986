"""Batched target passes: one token of each of many sequences, through the graph that users run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedConfig

from jakiro_export.artifact.writer import DataFiles, save
from jakiro_export.checkpoints.target import Target
from jakiro_export.graphs import target_graph
from jakiro_export.plan import TargetPlan, target_attention
from jakiro_export.precisions import PRECISIONS
from jakiro_export.targets import families
from jakiro_runtime import contract
from jakiro_runtime.backends.onnxruntime import OnnxRuntimeGraph
from jakiro_runtime.decoding.kv_cache import KVCache
from jakiro_runtime.kernels import library


def write_target_graph(target: Target, folder: Path) -> Path:
    """The target's graph in `folder`, written there if it is not yet: in int8 where that is fast, else in float32."""
    file = folder / "target.onnx"
    if not file.is_file():
        precision = PRECISIONS["fp32" if library() is None else "int8"]
        context = families.context_limit(target.config, None)
        plan = TargetPlan(target, precision, target_attention(target.config, precision, False, context), 23, context)
        with DataFiles(folder) as files:
            save(target_graph(plan, {}), folder / "target.new.onnx", files)
        (folder / "target.new.onnx").rename(file)
    return file


class BatchedTarget:
    """The target over one token of each of `slots` sequences. Its buffers are bound once.

    lengths: tokens in each sequence's cache, [slots]; set one to 0 to begin anew
    logits, best, features: of the last pass, [slots, vocab], [slots], [slots, hidden]
    """

    def __init__(self, graph: OnnxRuntimeGraph, config: PreTrainedConfig, capacity: int, slots: int) -> None:
        layers, kv_heads, hidden = config.num_hidden_layers, config.num_key_value_heads, config.hidden_size
        head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        wanted = contract.target(layers, kv_heads, head_dim, hidden, config.vocab_size)
        axes = {contract.BATCH: slots, contract.ROWS: 1, contract.SELECTED: 1}
        names = [(f"past_key.{n}", f"past_value.{n}") for n in range(layers)]
        self._cache = KVCache(names, kv_heads, head_dim, (graph.inputs["past_key.0"], graph.inputs["past_value.0"]), slots)
        self._cache.reserve(capacity)
        self._new_keys, self._new_values, new_rows = self._cache.scratch(1)
        self.lengths = self._cache.lengths
        self._inputs = {
            spec.name: np.zeros(spec.shape(axes), graph.inputs[spec.name])
            for spec in wanted.inputs
            if spec not in wanted.caches and spec.name != "past_length"
        }
        self._inputs["tree_mask"][:] = True  # one row, which sees itself
        outputs = {
            spec.name: np.zeros(spec.shape(axes), graph.outputs[spec.name])
            for spec in wanted.outputs
            if spec.name not in new_rows
        }
        self.best, self.logits = outputs["next_tokens"][:, 0], outputs["logits"][:, 0]
        self.features = outputs["hidden_states"][:, 0]
        inputs = {**self._inputs, "past_length": self.lengths, **self._cache.inputs()}
        self._binding = graph.bind(inputs, {**outputs, **new_rows})

    def run(self, tokens: Sequence[int]) -> None:
        """Feed one token to each sequence."""
        self._inputs["input_ids"][:, 0], self._inputs["position_ids"][:, 0] = tokens, self.lengths
        self._binding.run()
        self._cache.commit(self._new_keys, self._new_values, [[0]] * len(tokens))
