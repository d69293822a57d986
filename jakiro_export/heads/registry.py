"""The families of draft heads that the exporter knows: every module of this package that registers one."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import jakiro_export.heads
from jakiro_export.checkpoints.head import read_head
from jakiro_export.errors import ExportError
from jakiro_export.heads.family import DraftHead

Family = TypeVar("Family", bound=DraftHead)
_FAMILIES: dict[str, type[DraftHead]] = {}


def register(family: type[Family]) -> type[Family]:
    """Class decorator: make a family known under its `variant`."""
    _FAMILIES[family.variant] = family
    return family


def families() -> list[type[DraftHead]]:
    """Every family, in the order of their names."""
    for module in pkgutil.iter_modules(jakiro_export.heads.__path__):
        import_module(f"{jakiro_export.heads.__name__}.{module.name}")
    return [_FAMILIES[variant] for variant in sorted(_FAMILIES)]


def load_head(path: Path, name: str) -> DraftHead:
    """Open a head of any family, and check its tensors.

    Raises:
        UsageError: `path` is not a head's folder
        ExportError: a file is damaged, the head is of no known family, or its tensors are not those of its family
    """
    checkpoint, known = read_head(path, name), families()
    shapes = checkpoint.store.shapes()
    found = [family for family in known if family.recognises(checkpoint.config, shapes)]
    if len(found) == 1:
        return found[0].read(checkpoint)
    titles = ", ".join(family.title for family in (found or known))
    if found:
        raise ExportError(f"The head in {path} could be of several families ({titles}); one was expected.")
    some = ", ".join(sorted(shapes)[:3]) or "none at all"
    raise ExportError(f"The head in {path} is of no family that this exporter knows ({titles}); its tensors are {some}, ...")
