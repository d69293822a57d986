"""Published head to begin training with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jakiro_export.errors import UsageError
from jakiro_export.heads.registry import load_head
from jakiro_export.training.model import TrainedHead, new_head
from jakiro_export.training.sizes import Sizes


def loaded(path: Path, sizes: Sizes, inner: int | None) -> tuple[TrainedHead, np.ndarray | None]:
    """A head of a published checkpoint, to be trained on, and its order of tokens, where it has one.

    Args:
        sizes: what heads of the family have for this target; the inner size is the checkpoint's
        inner: what the user asked for, if anything

    Raises:
        ExportError: the checkpoint is damaged, or of another family.
        UsageError: it is of another kind or size than the heads that are trained here for this target.
    """
    found = load_head(path, str(path), sizes.family)
    config: Any = found.config
    wanted: dict[str, Any] = {name: getattr(sizes, name) for name in ("hidden", "heads", "kv_heads", "head_dim")}
    if inner is not None:
        wanted["inner"] = inner
    if sizes.layers:
        wanted["named_layers"] = sizes.layers
    for name, value in wanted.items():
        if getattr(config, name) != value:
            what = "was asked for" if name == "inner" else "fits the target"
            raise UsageError(f"The head in {path} has {name} = {getattr(config, name)}, but {value} {what}.")
    head, store = new_head(replace(sizes, inner=config.inner)), found.checkpoint.store
    names, trained = set(found.expected_shapes(config)) - {"lm_head.weight"}, set(head.state_dict())
    if names != trained or config.qk_norm or getattr(config, "norm_output", False):
        odd = sorted(names ^ trained)
        kind = f"{'has' if odd[0] in names else 'lacks'} {odd[0]}" if odd else "norms what is trained here without a norm"
        raise UsageError(f"The head in {path} {kind}; --init takes the kind of head that is trained here.")
    values = {name: torch.from_numpy(store.rows(name, 0, store.shapes()[name][0])).float() for name in trained}
    head.load_state_dict(values)
    return head, found.token_order
