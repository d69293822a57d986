"""The families of draft heads that the exporter knows: every module of this package that registers one."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

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


def load_head(path: Path, name: str, family: str | None = None) -> DraftHead:
    """Open a head of any family, and check its tensors.

    Args:
        family: the `variant` that it shall be; None for what its files say

    Raises:
        UsageError: `path` is not a head's folder
        ExportError: a file is damaged, the head is of no known family, or its tensors are not those of its family
    """
    checkpoint, known = read_head(path, name), families()
    shapes = checkpoint.store.shapes()
    found = [each for each in known if each.recognises(checkpoint.config, shapes)]
    if family is not None and not any(each.variant == family for each in found):
        seen = " and ".join(f"a head of the family {each.variant}" for each in found) or "of no known family"
        raise ExportError(f"The checkpoint in {path} is {seen}, and --family says {family}; leave that out, or give another.")
    found = [each for each in found if family in (None, each.variant)]
    if len(found) == 1:
        return found[0].read(checkpoint)
    titles = ", ".join(each.title for each in (found or known))
    if found:
        raise ExportError(f"The head in {path} could be of several families ({titles}); say which with --family.")
    other = _other_kind(checkpoint.config, shapes)
    if other is not None:
        raise ExportError(f"The checkpoint in {path} is {other}; this exporter runs heads of the families {titles}.")
    some = ", ".join(sorted(shapes)[:3]) or "none at all"
    raise ExportError(f"The head in {path} is of no family that this exporter knows ({titles}); its tensors are {some}, ...")


# Checkpoints that are recognised but not supported: a regular expression that a tensor name matches, and what it then is
_OTHER_KINDS = {
    r"\d+\.\d+\.linear\.weight$|medusa_head\.": "a set of Medusa heads",
    r".*eh_proj\.|mtp\.": "a multi-token prediction (MTP) module",
    r"model\.layers\.": "a whole language model and no draft head",
}


def _other_kind(config: Mapping[str, Any], shapes: Iterable[str]) -> str | None:
    if "dflash_config" in config:
        return "a DFlash head (dflash_config in its config.json)"
    names = sorted(shapes)
    for pattern, kind in _OTHER_KINDS.items():
        name = next((name for name in names if re.match(pattern, name)), None)
        if name is not None:
            return f"{kind} (its tensor {name} says so)"
    return None
