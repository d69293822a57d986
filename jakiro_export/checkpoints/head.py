"""A draft head's folder as it was found: configuration, tensors by published name, order of tokens.

What the tensors mean is the business of the head's family (`jakiro_export.heads`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jakiro_export.checkpoints import plain
from jakiro_export.checkpoints.json_file import read_object
from jakiro_export.checkpoints.memory import read_pickled
from jakiro_export.checkpoints.safetensors import SafetensorsStore
from jakiro_export.checkpoints.store import TensorStore
from jakiro_export.errors import ExportError, UsageError


@dataclass(frozen=True)
class HeadCheckpoint:
    """A folder with `config.json` and weights, not yet known to be a head of any family.

    name: what the user called it
    config: the content of `config.json`
    """

    name: str
    path: Path
    config: dict[str, Any]
    store: TensorStore

    def token_order(self, vocab: int) -> np.ndarray | None:
        """The target's tokens, most frequent first, from `token_order.safetensors`; None without that file.

        Raises:
            ExportError: they are not distinct token ids below `vocab`
        """
        file = self.path / "token_order.safetensors"
        if not file.is_file():
            return None
        store = SafetensorsStore([file])
        if len(store.shapes().get("token_ids", ())) != 1:
            raise ExportError(f"{file} lacks the tensor token_ids: token ids in one row, most frequent first.")
        order = store.rows("token_ids", 0, store.shapes()["token_ids"][0]).astype(np.int64)
        if not len(order) or len(np.unique(order)) != len(order) or order.min() < 0 or order.max() >= vocab:
            raise ExportError(f"{file}: token_ids must be distinct token ids below {vocab}.")
        return order


def read_head(path: Path, name: str) -> HeadCheckpoint:
    """Open a head's folder without reading its weights, except where its format leaves no choice (`.bin`).

    Raises:
        UsageError: `path` is not a head's folder
        ExportError: a file is damaged, or a pickle holds more than tensors
    """
    if not (path / "config.json").is_file():
        raise UsageError(f"The head {path} is not a folder with a config.json and weights.")
    config = read_object(path / "config.json", "The head's configuration")
    plain.check_config(config.get("quantization_config"), path)
    safetensors, pickled = path / "model.safetensors", path / "pytorch_model.bin"
    if safetensors.is_file():
        return HeadCheckpoint(name, path, config, SafetensorsStore([safetensors]))
    if pickled.is_file():
        return HeadCheckpoint(name, path, config, read_pickled(pickled))
    raise ExportError(f"The head in {path} has neither model.safetensors nor pytorch_model.bin.")
