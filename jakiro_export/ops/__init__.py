"""Operators, one file each: schema, eager torch form, ONNX translation and body in standard operators. `registry` lists them."""

DOMAIN = "jakiro"  # of all of them in ONNX; here, so that a graph can be read without torch
