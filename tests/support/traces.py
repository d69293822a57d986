"""Traces kept for the length of a test run: a module that equals an earlier one in everything is not traced again.

Tracing is four fifths of the export of a tiny engine, and most tests export one of few. A module is described by its class and
all it holds, hooks and closures included; what cannot be described so is traced as usual.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import PreTrainedConfig

_PATHS = ("_name_or_path", "name_or_path", "transformers_version")  # of a config: where it lay does not matter
_HOOKS = ("hooks", "hooks_with_kwargs", "hooks_always_called")  # of a module, by the endings of their names


class Indescribable(Exception):
    """An object of which equality cannot be told by its parts."""


def described(what: Any, seen: dict[int, tuple[int, Any]] | None = None) -> Any:
    """A nested tuple of plain values that two objects share if and only if they are alike in all their parts.

    Raises:
        Indescribable: a part is of a kind that this cannot look into.
    """
    seen = {} if seen is None else seen
    if what is None or isinstance(what, (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, Path)):
        return type(what).__name__, repr(what)
    if id(what) in seen:
        return "seen", seen[id(what)][0]
    seen[id(what)] = len(seen), what  # which keeps it alive, and its id its own
    if isinstance(what, torch.Tensor):
        held = b"" if what.is_meta else np.ascontiguousarray(what.detach().float().numpy()).tobytes()
        return "tensor", tuple(what.shape), str(what.dtype), str(what.device), hashlib.sha256(held).hexdigest()
    if isinstance(what, np.ndarray):
        return "array", what.shape, str(what.dtype), hashlib.sha256(np.ascontiguousarray(what).tobytes()).hexdigest()
    if isinstance(what, PreTrainedConfig):
        return type(what).__qualname__, described({k: v for k, v in vars(what).items() if k not in _PATHS}, seen)
    if isinstance(what, Mapping):
        return "mapping", tuple((described(key, seen), described(value, seen)) for key, value in what.items())
    if isinstance(what, (list, tuple)):
        return type(what).__name__, tuple(described(each, seen) for each in what)
    if isinstance(what, (set, frozenset)):
        return "set", tuple(sorted(map(repr, what)))
    if isinstance(what, MethodType):
        return "method", what.__func__.__qualname__, described(what.__self__, seen)
    if isinstance(what, FunctionType):
        cells = tuple(cell.cell_contents for cell in what.__closure__ or ())
        code = hashlib.sha256(what.__code__.co_code + repr(what.__code__.co_consts).encode()).hexdigest()
        return "function", what.__module__, what.__qualname__, code, described((cells, what.__defaults__), seen)
    if isinstance(what, (type, np.dtype)) or (type(what).__module__ in ("builtins", "_functools") and callable(what)):
        if isinstance(what, functools.partial):
            return "partial", described((what.func, what.args, what.keywords), seen)
        return "named", repr(what)
    if not hasattr(what, "__dict__") or any(getattr(kind, "__slots__", ()) for kind in type(what).__mro__):
        raise Indescribable(type(what).__qualname__)
    held = vars(what)
    if isinstance(what, torch.nn.Module):  # hooks are numbered through the whole process
        held = {name: list(value.values()) if name.endswith(_HOOKS) and isinstance(value, dict) else value
                for name, value in held.items()}  # fmt: skip
    kind = type(what)
    own = id(seen.setdefault(id(kind), (len(seen), kind))[1]) if "<locals>" in kind.__qualname__ else 0
    return kind.__module__, kind.__qualname__, own, described(held, seen)


class Traces:
    """Kept traces, and how many there were of either kind."""

    def __init__(self) -> None:
        self._kept: dict[str, ir.Model] = {}
        self.made = self.reused = self.unknown = 0

    @contextmanager
    def off(self) -> Iterator[None]:
        """Trace everything anew: for a test that changes the code which is traced."""
        kept, self._kept = self._kept, {}
        yield
        self._kept = kept

    def around(self, trace: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
        """`jakiro_export.tracing.trace`, called once for equal arguments."""

        @functools.wraps(trace)
        def traced(*arguments: Any) -> ir.Model:
            try:
                key = hashlib.sha256(repr(described(arguments)).encode()).hexdigest()
            except Indescribable:
                self.unknown += 1
                return trace(*arguments)
            if key in self._kept:
                self.reused += 1
            else:
                self.made += 1
                self._kept[key] = trace(*arguments)
            return self._kept[key].clone()

        return traced
