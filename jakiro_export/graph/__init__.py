"""The graphs: how a target and a head become ONNX."""
