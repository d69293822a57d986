"""From the ONNX graphs of an engine directory to TensorRT engines: on the device, or ahead of time with TensorRT-RTX.

graphs      what a graph demands of TensorRT, and the form in which it is handed over (plugin or function body)
profiles    the shapes an engine is tuned for
lowering    norms and rotary embeddings as primitives, for older parsers
operators   which operators a version's parser has
versions    which TensorRT it is, and what that one needs
memory      what a build needs, before it starts
worker      one build, in a process of its own: it may crash
building    a directory's builds, one after the other, and their records in engine.json
accuracy    a built engine against ONNX Runtime
"""
