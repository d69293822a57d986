"""Refusal of checkpoints whose tensors are not plain numbers: quantised ones would lose their scales without a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jakiro_export.checkpoints.store import TensorStore
from jakiro_export.errors import ExportError

_REMEDY = "give the checkpoint that is not quantised; --precision quantises it (w4a16, w8a8, fp8, nvfp4, int8, int4)"


def check_config(config: Mapping[str, Any] | None, path: Path) -> None:
    """Raise ExportError where a configuration's `quantization_config` says that weights are quantised.

    Args:
        config: the content of `quantization_config`; None or empty where there is none
    """
    if config:
        method = config.get("quant_method") if isinstance(config, Mapping) else None
        raise ExportError(
            f"The checkpoint in {path} is quantised ({method or 'quantization_config'} in its config.json), which this exporter "
            f"does not read; {_REMEDY}."
        )


def check_tensors(store: TensorStore, names: Iterable[str], path: Path) -> None:
    """Raise ExportError where a parameter holds integers."""
    for name in names:
        if store.dtype(name).kind in "iub" or store.dtype(name).itemsize == 1:
            raise ExportError(
                f"The checkpoint in {path} is quantised: its parameter {name} holds {store.dtype(name)}, where floating-point "
                f"numbers are expected; {_REMEDY}."
            )
