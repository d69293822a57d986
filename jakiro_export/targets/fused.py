"""Norms and rotary embeddings as the single operators that ONNX opset 23 has for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jakiro_export.ops.rms_norm import fused_rms_norm
from jakiro_export.ops.rotary import fused_rotary


@contextmanager
def fused_operators(model: nn.Module, opset: int) -> Iterator[None]:
    """While tracing, write norms and rotary embeddings as the single operators that opset 23 has for them.

    A module is replaced only where it computes what the operator computes, which is tried on random numbers first.
    """
    if opset < 23:
        yield
        return
    undo: list[tuple[Any, str, Any]] = []
    for module in list(model.modules()):
        if type(module).__name__.endswith("RMSNorm") and _is_plain_rms_norm(type(module)):
            undo.append((module, "forward", module.__dict__.get("forward")))
            module.forward = _RmsNormOperator(module)
    for source in {sys.modules[type(module).__module__] for module in model.modules()}:
        rotate = getattr(source, "apply_rotary_pos_emb", None)
        if rotate is not None and _is_plain_rotary(rotate):
            undo.append((source, "apply_rotary_pos_emb", rotate))
            source.apply_rotary_pos_emb = _RotaryOperator(rotate)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for owner, name, value in undo:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


class _RmsNormOperator:
    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.epsilon = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))

    def __call__(self, x: Tensor) -> Tensor:
        return fused_rms_norm(x, self.module.weight, self.epsilon)


class _RotaryOperator:
    """In the place of a model's own function, which still does what a call with more arguments asks for."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if more or named:
            found: tuple[Tensor, Tensor] = self.original(q, k, cos, sin, *more, **named)
            return found
        return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first channels of a head are rotated, as many as there are angles for; the others pass."""
    turned = cos.shape[-1]
    cos, sin = cos[..., : turned // 2], sin[..., : turned // 2]
    if turned == x.shape[-1]:
        return fused_rotary(x, cos, sin)
    return torch.cat([fused_rotary(x[..., :turned], cos, sin), x[..., turned:]], -1)


@torch.no_grad()
def _is_plain_rms_norm(kind: type) -> bool:
    try:
        norm = kind(8, eps=1e-5)
    except TypeError:
        return False
    weight = norm._parameters.get("weight")
    if weight is None or len(norm._parameters) != 1:
        return False
    weight.copy_(torch.linspace(0.5, 2, 8))
    x = torch.linspace(-3, 4, 24).reshape(3, 8)
    plain = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight
    return torch.allclose(norm(x), plain, atol=1e-5)


@torch.no_grad()
def _is_plain_rotary(rotate: Any) -> bool:
    """Whether a function rotates halves; where it takes fewer angles than a head has channels, it must let the others pass."""
    q, angle = torch.linspace(-2, 2, 48).reshape(1, 2, 3, 8), torch.linspace(0, 3, 12).reshape(1, 3, 4)

    def plain(x: Tensor, angle: Tensor) -> Tensor:
        half = angle.shape[-1]
        left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        c, s = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([left * c - right * s, right * c + left * s, rest], -1)

    def agrees(angle: Tensor) -> bool:
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        turned = rotate(q, q, cos, sin)[0]
        return turned.shape == q.shape and torch.allclose(turned, plain(q, angle), atol=1e-5)

    try:
        whole = agrees(angle)
    except (TypeError, RuntimeError, IndexError):
        return False
    try:
        return whole and agrees(angle[..., :2])
    except (TypeError, RuntimeError, IndexError):
        return whole  # it takes whole heads only
