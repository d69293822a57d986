"""The recipes of a target graph's weights."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from jakiro_export.artifact.weights import Array, Stored, Weight
from jakiro_export.checkpoints.memory import as_numpy
from jakiro_export.checkpoints.target import Target
from jakiro_export.targets.experts import expert_weight
from jakiro_export.targets.graph import TargetGraph
from jakiro_export.targets.models import computed_buffers


def target_weights(target: Target, graph: TargetGraph, needed: Collection[str], dtype: np.dtype) -> dict[str, Weight]:
    """Recipes of the initializers `needed`, by name.

    Raises:
        ExportError: the checkpoint lacks a tensor, or the model computes a buffer that this exporter cannot
    """
    weights: dict[str, Weight] = {
        name: expert_weight(target, graph.expert_parts[stored], dtype)
        if stored in graph.expert_parts
        else Stored(target.store, target.tensor_name(stored), dtype)
        for name, stored in graph.stored_names.items()
        if name in needed
    }
    buffers = computed_buffers(graph.model)
    weights.update({f"model.{name}": Array(as_numpy(value)) for name, value in buffers.items()})
    return weights
