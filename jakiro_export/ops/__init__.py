"""Operators: schema, eager torch and ONNX body of each."""

DOMAIN = "jakiro"  # of them all, in ONNX; here, so that reading a graph needs no torch
