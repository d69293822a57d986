"""Calls of the runtime's kernels: a graph of one operator with its body in standard operators, and inputs for each operator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from jakiro_export.artifact.weights import Array
from jakiro_export.ops import DOMAIN, registry
from jakiro_export.ops.operator import CallSite
from jakiro_export.quantization.hadamard import block_size, hadamard
from jakiro_export.quantization.schemes import SCHEMES

OPSET = 23
Arrays = dict[str, np.ndarray]
BODIES = {
    operator.name: operator.function(CallSite(OPSET))
    for operator in registry.operators().values()
    if operator.domain == DOMAIN and operator.cpu_kernel
}
ATTRIBUTES = {
    "TreeAttention": {"scaling": 0.3},
    "NormRowInt8MatMul": {"epsilon": 1e-3},
    "NormRowInt4MatMul": {"epsilon": 1e-3},
}


def session(
    name: str,
    inputs: Arrays,
    library: Path | None,
    threads: int = 2,
    body: onnx.FunctionProto | None = None,
    constants: Sequence[str] = (),
    **attributes: float,
) -> ort.InferenceSession:
    """A graph of one operator with its body, run by the kernels where `library` is given.

    constants: inputs to write into it
    """
    body = body or BODIES[name]
    node = helper.make_node(name, list(inputs), list(body.output), domain="jakiro", **attributes)
    kinds = {key: helper.np_dtype_to_tensor_dtype(value.dtype) for key, value in inputs.items() if key not in constants}
    integers = {"index", "proposed", "parents", "tree_tokens", "tree_parents", "best_token"}
    results = {each: TensorProto.INT64 if each in integers else TensorProto.FLOAT for each in body.output}
    graph = helper.make_graph(
        [node],
        name,
        [helper.make_tensor_value_info(key, kind, [None] * inputs[key].ndim) for key, kind in kinds.items()],
        [helper.make_tensor_value_info(output, kind, None) for output, kind in results.items()],
        [onnx.numpy_helper.from_array(inputs[each], each) for each in constants],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("jakiro", 1)]
    model = helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def int8_call(rows: int, wide: int = 192, out: int = 80, gain: bool = False, residual: bool = False) -> Arrays:
    random = np.random.default_rng(rows)
    weight = random.integers(1, 256, (out // 16, wide // 4, 16, 4)).astype(np.uint8)
    x = random.standard_normal((1, rows, wide)).astype(np.float32)
    x[0, :, 5] *= 50  # an outlier
    rotation = hadamard(block_size(wide))
    more = {"gain": random.random(wide).astype(np.float32)} if gain else {}
    if residual:
        more["residual"] = random.standard_normal((1, rows, out)).astype(np.float32)
    return {"x": x, "rotation": rotation, "weight": weight, "scales": random.random(out).astype(np.float32) / 100, **more}


def int4_call(rows: int, wide: int = 192, out: int = 80, gain: bool = False, residual: bool = False) -> Arrays:
    """As `int8_call`, with int4 weights."""
    given = int8_call(rows, wide, out, gain, residual)
    matrix = np.random.default_rng(1).standard_normal((out, wide)).astype(np.float32)
    weights = zip(("weight", "scales", "mins"), SCHEMES["int4"].initializers(Array(matrix), "").values(), strict=True)
    left = {name: given[name] for name in ("gain", "residual") if name in given}
    return {"x": given["x"], **{name: np.concatenate(list(weight.panels())) for name, weight in weights}, **left}


def attention_call(rows: int, past: int, capacity: int, dim: int, seed: int = 0) -> Arrays:
    """A random tree over a random past; the cache's empty slots hold what must not be read."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    visible = np.eye(rows, dtype=bool)
    for row in range(1, rows):
        visible[row] |= visible[random.integers(0, row)]
    key, value = normal(1, 2, capacity, dim), normal(1, 2, capacity, dim)
    return {
        "query": normal(1, 6, rows, dim),
        "past_key": key,
        "past_value": value,
        "new_key": normal(1, 2, rows, dim),
        "new_value": normal(1, 2, rows, dim),
        "past_length": np.array([past]),
        "visible": visible[None],
    }


def batch(*sequences: Arrays) -> Arrays:
    return {name: np.concatenate([each[name] for each in sequences]) for name in sequences[0]}


def best_nodes_call() -> Arrays:
    """Two trees of a few levels, a child scored below its parent; some scores are equal."""
    random = np.random.default_rng(0)
    parents = np.array([[-1, -1, -1, *random.integers(0, 3, 5), *random.integers(3, 8, 12)] for _ in range(2)])
    scores = np.zeros(parents.shape, np.float32)
    for row, column in np.ndindex(*parents.shape):
        above = 0 if parents[row, column] < 0 else scores[row, parents[row, column]]
        scores[row, column] = above - random.integers(1, 4)
    return {"scores": scores, "tokens": np.arange(40).reshape(2, 20), "parents": parents, "count": np.array([9])}


CALLS = [
    *[("RowInt8MatMul", int8_call(rows, wide)) for rows, wide in ((1, 192), (7, 48), (33, 576))],
    ("RowInt8MatMulAdd", int8_call(13, residual=True)),
    *[("NormRowInt8MatMul", int8_call(rows, gain=True)) for rows in (2, 14)],
    *[("SwiGluRowInt8MatMul", {**int8_call(rows), "x": int8_call(rows, 384)["x"]}) for rows in (3, 24)],
    ("SwiGluRowInt8MatMulAdd", {**int8_call(9, residual=True), "x": int8_call(9, 384)["x"]}),
    *[("RowInt4MatMul", int4_call(rows, wide)) for rows, wide in ((1, 192), (7, 32), (33, 576))],
    ("RowInt4MatMulAdd", int4_call(13, residual=True)),
    *[("NormRowInt4MatMul", int4_call(rows, gain=True)) for rows in (2, 14)],
    *[("SwiGluRowInt4MatMul", {**int4_call(rows), "x": int8_call(rows, 384)["x"]}) for rows in (3, 24)],
    ("SwiGluRowInt4MatMulAdd", {**int4_call(9, residual=True), "x": int8_call(9, 384)["x"]}),
    *[("TreeAttention", attention_call(rows, past, 128, dim)) for rows, past, dim in ((1, 100, 64), (9, 77, 16), (40, 0, 8))],
    ("TreeAttention", batch(*(attention_call(5, past, 96, 32, past) for past in (90, 0, 17)))),
    ("SplitHeads", {
        "qkv": np.random.default_rng(0).standard_normal((2, 3, 10 * 16)).astype(np.float32),
        "cos": np.cos(np.arange(48)).reshape(2, 3, 8).astype(np.float32),
        "sin": np.sin(np.arange(48)).reshape(2, 3, 8).astype(np.float32),
        "parts": np.array([6, 2, 2]),
    }),
    *[("Candidates", {"logits": np.random.default_rng(n).integers(0, n, (5, 83)).astype(np.float32), "count": np.array([7])})
      for n in (9, 900)],  # ties too
    ("Propose", {
        "scores": np.arange(6, dtype=np.float32).reshape(2, 3),
        "log_probs": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32),
        "tokens": np.arange(24).reshape(2, 3, 4),
        "numbers": np.array([[5, 7, 9], [6, 8, 30]]),
    }),
    ("BestNodes", best_nodes_call()),
    ("MixExperts", {
        name: np.random.default_rng(width).standard_normal((5, width)).astype(np.float32)
        for name, width in {"router_logits": 4, "first": 33, "second": 34}.items()
    } | {"second": np.ones((5, 33), np.float32)}),
    ("BestToken", {"logits": np.random.default_rng(0).integers(0, 40, (1, 5, 83)).astype(np.float32)}),  # ties: the first counts
    ("SwiGlu", {"both": np.linspace(-150, 150, 2 * 3 * 72).reshape(2, 3, 72).astype(np.float32)}),
]  # fmt: skip
