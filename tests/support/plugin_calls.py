"""The plugin library's C interface for ctypes, and its arguments in NumPy; needs NumPy alone."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

TYPES = {"float": 0, "half": 1, "bfloat16": 2}


class Dispatch(ctypes.Structure):
    """JakiroExpertDispatch of plugins/include/jakiro_plugins.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("rows", "hidden", "inner")),
        *((name, ctypes.c_int32) for name in ("experts", "top_k", "contrast")),
        *((n, ctypes.c_void_p) for n in ("x", "router_logits", "gate_up", "down", "primary", "contrast_output", "workspace")),
    )


class GroupMatMul(ctypes.Structure):
    """JakiroGroupMatMul of the same header."""

    _fields_ = (
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("rows", "in", "out")),
        ("group", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("x", "weights", "scales", "y")),
    )


def declare(library: Any) -> Any:
    """Tell ctypes the types of the library's calls."""
    library.jakiro_expert_dispatch_workspace.restype = ctypes.c_size_t
    library.jakiro_expert_dispatch_workspace.argtypes = [ctypes.c_int] + [ctypes.c_int64] * 3 + [ctypes.c_int32]
    library.jakiro_expert_dispatch.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.jakiro_kv_commit.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.jakiro_group_matmul.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library


def to_bits(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 values as the element type holds them; bfloat16 as uint16, rounded to nearest even."""
    if kind != "bfloat16":
        return values.astype(np.float32 if kind == "float" else np.float16)
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)


def from_bits(bits: np.ndarray, kind: str) -> np.ndarray:
    """The same values in float32, exactly."""
    if kind != "bfloat16":
        return bits.astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)
