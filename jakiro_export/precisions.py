"""Number formats of an engine. A format is one row of one table; `--precision` takes its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

# How attention is written: with sums in any order, with exact sums (see `ops.attention`), or as one operator with exact sums
AttentionImpl = Literal["numerical", "bitwise", "fused"]


@dataclass(frozen=True)
class Precision:
    """A number format.

    activations: what everything but quantised matmuls computes in
    quantized: weights of matmuls are quantised by the passes, as the recipe of this name says
    gpu: it is for GPUs: bitwise equality, which costs sums in double, is not offered
    for_head: a draft head may have it
    """

    name: str
    activations: np.dtype
    quantized: bool = False
    gpu: bool = False
    for_head: bool = True

    def attention(self, bitwise: bool) -> AttentionImpl:
        """How a target of this format writes attention: quantised ones on CPUs fused, which is exact, and the fastest."""
        return "fused" if self.quantized and not self.gpu else "bitwise" if bitwise else "numerical"


PRECISIONS = {
    each.name: each
    for each in (
        Precision("fp32", np.dtype(np.float32)),
        Precision("fp16", np.dtype(np.float16), gpu=True),
        Precision("bf16", np.dtype(ml_dtypes.bfloat16), gpu=True),
        Precision("int8", np.dtype(np.float32), quantized=True),
        Precision("int4", np.dtype(np.float32), quantized=True, for_head=False),
        Precision("w4a16", np.dtype(np.float16), quantized=True, gpu=True),
        Precision("w8a8", np.dtype(np.float16), quantized=True, gpu=True),
        Precision("fp8", np.dtype(np.float16), quantized=True, gpu=True),
        Precision("nvfp4", np.dtype(np.float16), quantized=True, gpu=True),
    )
}
