"""The registry of schemes. A new one is a file of this package and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from jakiro_export.quantization.rounding import FP8, INT8
from jakiro_export.quantization.scheme import Scheme
from jakiro_export.quantization.schemes.bytes8 import Bytes8
from jakiro_export.quantization.schemes.int4 import Int4
from jakiro_export.quantization.schemes.int8 import Int8
from jakiro_export.quantization.schemes.nvfp4 import Nvfp4
from jakiro_export.quantization.schemes.weights4 import Weights4

SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in (Int8(), Int4())}
# For GPUs: nodes of standard operators over half-precision activations. "w4" chooses the largest group that fits
GPU_SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Weights4("w4"),
        Weights4("w4g128", 128),
        Weights4("w4g64", 64),
        Weights4("w4g32", 32),
        Weights4("w4-nearest", search=False),
        Weights4("w4z", shifted=True),
        Weights4("w4zg32", 32, shifted=True),
        Bytes8("w8a16", INT8, activations=False),
        Bytes8("w8a8", INT8, activations=True),
        Bytes8("fp8a16", FP8, activations=False),
        Bytes8("fp8", FP8, activations=True),
        Nvfp4("nvfp4a16", activations=False),
        Nvfp4("nvfp4", activations=True),
    )
}
