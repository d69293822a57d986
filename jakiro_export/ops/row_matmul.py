"""Row matmuls: rows, quantised one by one, times a quantised matrix; forms with something before and after the product.

Weights are quantised once; activations in the operator, a row at a time, so that a row's result does not depend on the other rows
of the call (per-tensor scales would: speculative and plain decoding would then differ). Integer sums are exact in any order, and
what is left around them works element by element: a bitwise engine stays bitwise.

With few rows an operator costs more to start than to compute. So what comes before and after a product joins it:

    [Norm | SwiGlu] <matmul> [Add]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jakiro_export.ops.body import AttributeRef, Body
from jakiro_export.ops.operator import Attribute, CallSite, Example, Operand, Operator
from jakiro_export.ops.rms_norm import rms_norm
from jakiro_export.ops.swiglu import NAME as SWIGLU
from jakiro_export.ops.swiglu import swiglu, swiglu_body

NORM, ADD = "Norm", "Add"  # prologue and epilogue, as names of operators have them
FORMS = (("", ""), ("", ADD), (NORM, ""), (SWIGLU, ""), (SWIGLU, ADD))
SMALLEST = 2.0**-100  # a row of zeros is divided by this


class RowMatmul(NamedTuple):
    """The product itself.

    weights: the operands of the matrix
    eager: x [..., in] and the weights in torch -> [..., out]
    body: the product of the value of that name in standard operators; the result's name
    example: random weights of a matrix [out, in]
    """

    name: str
    doc: str
    weights: tuple[Operand, ...]
    eager: Callable[..., Tensor]
    body: Callable[[Body, str], str]
    example: Callable[[np.random.Generator, int, int], dict[str, np.ndarray]]


def forms(matmul: RowMatmul) -> tuple[Operator, ...]:
    """The operators of a product: alone, and with each prologue and epilogue."""
    return tuple(_form(matmul, prologue, epilogue) for prologue, epilogue in FORMS)


def _form(matmul: RowMatmul, prologue: str, epilogue: str) -> Operator:
    inputs = [Operand("x", "float", "[..., 2 * in]" if prologue == SWIGLU else "[..., in]"), *matmul.weights]
    if prologue == NORM:
        inputs.append(Operand("gain", "float", "[in]"))
    if epilogue == ADD:
        inputs.append(Operand("residual", "float", "[..., out]"))
    count = len(matmul.weights)

    def eager(x: Tensor, *more: Tensor, epsilon: float = 0.0) -> Tensor:
        weights, more = more[:count], more[count:]
        if prologue == NORM:
            x = rms_norm(x, more[0], epsilon)
        elif prologue == SWIGLU:
            x = swiglu(x)
        y = matmul.eager(x, *weights)
        return y + more[-1] if epilogue == ADD else y

    def body(b: Body, site: CallSite) -> tuple[str, ...]:
        x = "x"
        if prologue == NORM:
            x = b.add("RMSNormalization", "x", "gain", epsilon=AttributeRef("epsilon"))
        elif prologue == SWIGLU:
            x = swiglu_body(b, "x")
        y = matmul.body(b, x)
        return (b.add("Add", y, "residual") if epilogue == ADD else y,)

    def example(random: np.random.Generator) -> Example:
        rows, width, out = 7, 192, 80
        tensors = {"x": random.standard_normal((1, rows, 2 * width if prologue == SWIGLU else width)).astype(np.float32)}
        tensors["x"][..., 5] *= 20  # an outlier
        tensors.update(matmul.example(random, out, width))
        if prologue == NORM:
            tensors["gain"] = random.random(width).astype(np.float32)
        if epilogue == ADD:
            tensors["residual"] = random.standard_normal((1, rows, out)).astype(np.float32)
        return Example(tensors, {"epsilon": 1e-3} if prologue == NORM else {})

    words = {NORM: "an RMS norm, then ", SWIGLU: "SwiGLU, then ", ADD: ", plus a residual", "": ""}
    return Operator(
        name=prologue + matmul.name + epilogue,
        doc=f"{words[prologue]}{matmul.doc}{words[epilogue]}.".capitalize(),
        inputs=tuple(inputs),
        outputs=(Operand("y", "float", "[..., out]"),),
        attributes={"epsilon": Attribute("float", "of the norm")} if prologue == NORM else {},
        opset=23 if prologue == NORM else 18,
        eager=eager,
        body=body,
        cpu_kernel=True,
        example=example,
    )


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 of the shape of x, and the scale of each row, [..., 1]."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=SMALLEST) / 127
    return torch.round(x / scale), scale


def quantize_rows_body(b: Body, x: str) -> tuple[str, str]:
    """`quantize_rows` in standard operators."""
    size = b.add("ReduceMax", b.add("Abs", x), b.constant([-1]), keepdims=1)
    positive = b.add("Max", size, b.constant(SMALLEST, np.float32))
    scale = b.add("Div", positive, b.constant(127, np.float32))
    return b.add("Round", b.add("Div", x, scale)), scale
