"""Published head to begin training with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from jakiro_export.checkpoints.head import read_head
from jakiro_export.errors import UsageError
from jakiro_export.heads.jakiro import JakiroHead
from jakiro_export.training.model import TrainedHead


def loaded(path: Path, shape: dict[str, Any], inner: int | None, mixture: bool = True) -> tuple[TrainedHead, np.ndarray | None]:
    """A head of a published checkpoint, to be trained on, and its order of tokens, where it has one.

    Args:
        shape: what the target's heads have, `shape_of`; the experts' inner size is the checkpoint's
        inner: what the user asked for, if anything
        mixture: whether its gate shall learn; False takes heads whose gate is zero

    Raises:
        ExportError: the checkpoint is damaged, or no Jakiro head.
        UsageError: it is of another kind or size than the heads that are trained here for this target.
    """
    found = JakiroHead.read(read_head(path, str(path)))
    _check(found, path, shape, inner)
    head, store = TrainedHead(**{**shape, "inner": found.config.inner}, mixture=mixture), found.checkpoint.store
    values = {name: torch.from_numpy(store.rows(name, 0, store.shapes()[name][0])).float() for name in head.state_dict()}
    if not mixture and values["layers.0.mlp_moe.gate.weight"].any():
        raise UsageError(f"The head in {path} is a mixture: its gate is not zero. Leave --no-mixture out.")
    head.load_state_dict(values)
    return head, found.token_order


def _check(head: JakiroHead, path: Path, shape: dict[str, Any], inner: int | None) -> None:
    config = head.config
    if config.qkv_bias or not config.fc_bias:
        kind = "has a bias in its attention" if config.qkv_bias else "has no fc.bias"
        raise UsageError(f"The head in {path} {kind}; --init takes the kind of head that is trained here.")
    wanted = {name: shape[name] for name in ("hidden", "heads", "kv_heads", "head_dim")}
    if inner is not None:
        wanted["inner"] = inner
    for name, value in wanted.items():
        found = getattr(config, name)
        if found != value:
            what = "was asked for" if name == "inner" else "fits the target"
            raise UsageError(f"The head in {path} has {name} = {found}, but {value} {what}.")
