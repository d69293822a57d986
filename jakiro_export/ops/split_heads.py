"""Split heads: queries, keys and values of one projection, the first two rotated."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from jakiro_export.ops.body import Body
from jakiro_export.ops.operator import CallSite, Example, Operand, Operator
from jakiro_export.ops.rotary import rotary

NAME = "SplitHeads"


def split_heads(qkv: Tensor, cos: Tensor, sin: Tensor, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, [batch, parts[n], rows, head_dim], of qkv [batch, rows, heads * head_dim]."""
    by_head = qkv.unflatten(-1, (-1, 2 * cos.shape[-1])).transpose(1, 2)
    query, key, value = by_head.split(parts.tolist(), 1)
    return rotary(query, cos, sin), rotary(key, cos, sin), value


def _body(b: Body, site: CallSite) -> tuple[str, ...]:
    head_dim = b.add("Mul", b.size("cos", 2), b.constant([2]))
    by_head = b.add("Reshape", "qkv", b.add("Concat", b.constant([0, 0, -1]), head_dim, axis=0))
    query, key, value = b.add_many("Split", b.add("Transpose", by_head, perm=[0, 2, 1, 3]), "parts", outputs=3, axis=1)
    return b.add("RotaryEmbedding", query, "cos", "sin"), b.add("RotaryEmbedding", key, "cos", "sin"), value


def _example(random: np.random.Generator) -> Example:
    angles = random.uniform(-3, 3, (2, 3, 8))
    inputs = {"qkv": random.standard_normal((2, 3, 10 * 16)), "cos": np.cos(angles), "sin": np.sin(angles)}
    return Example({**{name: value.astype(np.float32) for name, value in inputs.items()}, "parts": np.array([6, 2, 2])}, {})


_ANGLES = "[batch, rows, head_dim / 2]"
OPERATORS = (
    Operator(
        name=NAME,
        doc="Queries, keys and values of one projection; queries and keys rotated by halves.",
        inputs=(
            Operand("qkv", "float", "[batch, rows, heads * head_dim]"),
            Operand("cos", "float", _ANGLES),
            Operand("sin", "float", _ANGLES),
            Operand("parts", "int64", "[3]"),
        ),
        outputs=tuple(
            Operand(name, "float", f"[batch, parts[{n}], rows, head_dim]") for n, name in enumerate(("query", "key", "value"))
        ),
        opset=23,
        eager=split_heads,
        body=_body,
        cpu_kernel=True,
        example=_example,
    ),
)
