"""Operators, one file each: schema, eager torch form, ONNX translation and body in standard operators. `registry` lists them."""

DOMAIN = "jakiro"  # of all of them in ONNX; here, so that a graph can be read without torch
# NVFP4's operators (`ops.fp4`), which jakiro-build rewrites without importing torch: their names, a block's inputs, and the step
# of a block's scale where rows are within -1 to 1: scales reach 1/6, and are whole numbers of this in fp8
DEQUANTIZE_FP4, ROUND_FP4 = "DequantizeFp4", "RoundFp4"
FP4_BLOCK, FP4_ROW_STEP = 16, 2.0**-11
