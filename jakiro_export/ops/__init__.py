"""Operators: schema, eager torch and ONNX body of each."""
