"""Export Jakiro heads and their targets to ONNX, and build engines from them. The torch side of the project."""
