"""The runtime's kernels against the operators' bodies, and each against itself: a row's result is its own, bit for bit.

Both forms are tested on every machine: AVX2 as it is, AVX-512 over a shim where the processor has none.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from answers import plain
from jakiro_export.artifact.weights import Array
from jakiro_export.ops import DOMAIN, registry
from jakiro_export.ops.operator import CallSite
from jakiro_export.quantization.hadamard import block_size, hadamard
from jakiro_export.quantization.schemes import SCHEMES
from jakiro_runtime import Engine, kernels
from jakiro_runtime.backends import onnxruntime as backend
from paths import ROOT

OPSET = 23
Arrays = dict[str, np.ndarray]
BODIES = {
    operator.name: operator.function(CallSite(OPSET))
    for operator in registry.operators().values()
    if operator.domain == DOMAIN and operator.cpu_kernel
}


SHIM = ROOT / "tests" / "support" / "avx512_shim.h"


@pytest.fixture(scope="module", params=["avx2", "avx512"])
def library(request: pytest.FixtureRequest) -> Path:
    if kernels.library() is None:
        pytest.skip("no kernels: they need a C++ compiler and a processor with AVX2")
    flags = ["-DJAKIRO_AVX512=0"]
    if request.param == "avx512":
        has_it = {"avx512_vnni", "avx512bw", "avx512dq", "avx512vl"} <= set(kernels._processor().split())
        digest = hashlib.sha256(SHIM.read_bytes()).hexdigest()[:8]
        flags = [] if has_it else ["-O1", "-include", str(SHIM), f"-DSHIM=0x{digest}"]
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler is not None
    return kernels._compiled(compiler, *flags)


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


def product(rows: int, wide: int = 192, out: int = 80, gain: bool = False, residual: bool = False) -> Arrays:
    random = np.random.default_rng(rows)
    weight = random.integers(1, 256, (out // 16, wide // 4, 16, 4)).astype(np.uint8)
    x = random.standard_normal((1, rows, wide)).astype(np.float32)
    x[0, :, 5] *= 50  # an entry far larger than the rest
    rotation = hadamard(block_size(wide))
    more = {"gain": random.random(wide).astype(np.float32)} if gain else {}
    if residual:
        more["residual"] = random.standard_normal((1, rows, out)).astype(np.float32)
    return {"x": x, "rotation": rotation, "weight": weight, "scales": random.random(out).astype(np.float32) / 100, **more}


def small(rows: int, wide: int = 192, out: int = 80, gain: bool = False, residual: bool = False) -> Arrays:
    """As `product`, with weights of four bits."""
    given = product(rows, wide, out, gain, residual)
    matrix = np.random.default_rng(1).standard_normal((out, wide)).astype(np.float32)
    weights = zip(("weight", "scales", "mins"), SCHEMES["int4"].initializers(Array(matrix), "").values(), strict=True)
    left = {name: given[name] for name in ("gain", "residual") if name in given}
    return {"x": given["x"], **{name: np.concatenate(list(weight.panels())) for name, weight in weights}, **left}


def attention(rows: int, past: int, capacity: int, dim: int, seed: int = 0) -> Arrays:
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


def best_nodes() -> Arrays:
    """Two trees of a few levels, a child scored below its parent; some scores are equal."""
    random = np.random.default_rng(0)
    parents = np.array([[-1, -1, -1, *random.integers(0, 3, 5), *random.integers(3, 8, 12)] for _ in range(2)])
    scores = np.zeros(parents.shape, np.float32)
    for row, column in np.ndindex(*parents.shape):
        above = 0 if parents[row, column] < 0 else scores[row, parents[row, column]]
        scores[row, column] = above - random.integers(1, 4)
    return {"scores": scores, "tokens": np.arange(40).reshape(2, 20), "parents": parents, "count": np.array([9])}


CALLS = [
    *[("RowInt8MatMul", product(rows, wide)) for rows, wide in ((1, 192), (7, 48), (33, 576))],
    ("RowInt8MatMulAdd", product(13, residual=True)),
    *[("NormRowInt8MatMul", product(rows, gain=True)) for rows in (2, 14)],
    *[("SwiGluRowInt8MatMul", {**product(rows), "x": product(rows, 384)["x"]}) for rows in (3, 24)],
    ("SwiGluRowInt8MatMulAdd", {**product(9, residual=True), "x": product(9, 384)["x"]}),
    *[("RowInt4MatMul", small(rows, wide)) for rows, wide in ((1, 192), (7, 32), (33, 576))],
    ("RowInt4MatMulAdd", small(13, residual=True)),
    *[("NormRowInt4MatMul", small(rows, gain=True)) for rows in (2, 14)],
    *[("SwiGluRowInt4MatMul", {**small(rows), "x": product(rows, 384)["x"]}) for rows in (3, 24)],
    ("SwiGluRowInt4MatMulAdd", {**small(9, residual=True), "x": product(9, 384)["x"]}),
    *[("TreeAttention", attention(rows, past, 128, dim)) for rows, past, dim in ((1, 100, 64), (9, 77, 16), (40, 0, 8))],
    ("TreeAttention", batch(*(attention(5, past, 96, 32, past) for past in (90, 0, 17)))),
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
    ("BestNodes", best_nodes()),
    ("MixExperts", {
        name: np.random.default_rng(width).standard_normal((5, width)).astype(np.float32)
        for name, width in {"router_logits": 4, "first": 33, "second": 34}.items()
    } | {"second": np.ones((5, 33), np.float32)}),
    ("BestToken", {"logits": np.random.default_rng(0).integers(0, 40, (1, 5, 83)).astype(np.float32)}),  # ties: the first counts
    ("SwiGlu", {"both": np.linspace(-150, 150, 2 * 3 * 72).reshape(2, 3, 72).astype(np.float32)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs"), CALLS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(CALLS)])
def test_a_kernel_computes_what_its_body_does(library: Path, name: str, inputs: Arrays) -> None:
    attributes = {
        "TreeAttention": {"scaling": 0.3},
        "NormRowInt8MatMul": {"epsilon": 1e-3},
        "NormRowInt4MatMul": {"epsilon": 1e-3},
    }.get(name, {})
    expected = session(name, inputs, None, **attributes).run(None, inputs)
    found = session(name, inputs, library, **attributes).run(None, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["RowInt8MatMul", "SwiGlu"])
def test_the_kernel_is_what_runs(library: Path, name: str) -> None:
    """A control: beside a body that computes something else, the kernel's result stays."""
    inputs = next(inputs for each, inputs in CALLS if each == name)
    wrong = onnx.FunctionProto()
    wrong.CopyFrom(BODIES[name])
    wrong.node[-1].op_type = "Add"
    right = session(name, inputs, library).run(None, inputs)[0]
    assert np.array_equal(session(name, inputs, library, body=wrong).run(None, inputs)[0], right)
    assert not np.allclose(session(name, inputs, None, body=wrong).run(None, inputs)[0], right, atol=0.1)


@pytest.mark.parametrize(
    ("name", "wide"), [("RowInt8MatMul", 48), ("RowInt8MatMul", 576), ("RowInt4MatMul", 64), ("RowInt4MatMul", 576)]
)
def test_a_rows_product_is_its_own(library: Path, name: str, wide: int) -> None:
    inputs = (product if name == "RowInt8MatMul" else small)(37, wide)
    together = session(name, inputs, library).run(None, inputs)[0]
    for threads in (1, 3):
        run = session(name, inputs, library, threads)
        for first, count in ((0, 1), (1, 2), (3, 8), (11, 26)):
            some = {**inputs, "x": inputs["x"][:, first : first + count]}
            assert np.array_equal(run.run(None, some)[0], together[:, first : first + count])


@pytest.mark.parametrize("name", ["RowInt8MatMul", "RowInt4MatMul"])
def test_constant_weights_are_kept_by_the_kernel(library: Path, name: str) -> None:
    """Its copy is read, not the graph's: the result is the same, also after another session is gone."""
    inputs = (product if name == "RowInt8MatMul" else small)(5)
    given = {"x": inputs["x"]}
    constants = [each for each in inputs if each != "x"]
    expected = session(name, inputs, library).run(None, inputs)[0]
    many = [session(name, inputs, library, constants=constants) for _ in range(3)]
    del many[0]  # one goes, the others' copies stay
    assert all(np.array_equal(each.run(None, given)[0], expected) for each in many)


def test_rotation_tames_an_outlier(library: Path) -> None:
    """The product against float64, with the rotation and with none: what it is for."""
    inputs = product(16)
    wide = inputs["x"].shape[-1]
    errors = []
    for block in (64, 1):
        weight = np.random.default_rng(1).standard_normal((80, wide)).astype(np.float32)
        rotation = hadamard(block)
        turned = (weight.reshape(-1, block) @ rotation).reshape(weight.shape)
        scales = np.abs(turned).max(1) / 127
        stored = (np.rint(turned / scales[:, None]) + 128).astype(np.uint8)
        tiled = stored.reshape(5, 16, wide // 4, 4).swapaxes(1, 2)
        call = {**inputs, "rotation": rotation, "weight": np.ascontiguousarray(tiled), "scales": scales}
        exact = inputs["x"].astype(np.float64) @ weight.T.astype(np.float64)
        errors.append(np.abs(session("RowInt8MatMul", call, library).run(None, call)[0] - exact).mean())
    assert errors[0] < 0.5 * errors[1], errors


@pytest.mark.parametrize("dim", [8, 16, 64, 128])
def test_attention_does_not_tell_the_cache_from_the_call(library: Path, dim: int) -> None:
    """A chain of rows: all in one call; in two calls, the first part cached; under other capacities and threads."""
    chain, past = 23, 70
    inputs = attention(chain, past, 96, dim)
    inputs["visible"] = np.tri(chain, dtype=bool)[None]
    whole = session("TreeAttention", inputs, library, scaling=0.2).run(None, inputs)[0]
    for cached, capacity, threads in ((1, 96, 1), (5, 128, 3), (22, 300, 2)):
        later = {**inputs, "visible": inputs["visible"][:, cached:, cached:], "past_length": np.array([past + cached])}
        later["query"] = inputs["query"][:, :, cached:]
        for part in ("key", "value"):
            cache = np.full((1, 2, capacity, dim), np.nan, np.float32)  # an empty slot that is read spoils everything
            cache[:, :, :past] = inputs[f"past_{part}"][:, :, :past]
            cache[:, :, past : past + cached] = inputs[f"new_{part}"][:, :, :cached]
            later[f"past_{part}"], later[f"new_{part}"] = cache, inputs[f"new_{part}"][:, :, cached:]
        later = {name: np.ascontiguousarray(value) for name, value in later.items()}
        found = session("TreeAttention", later, library, threads, scaling=0.2).run(None, later)[0]
        assert np.array_equal(found, whole[:, cached:])
    inputs["new_value"][0, 0, 3, 0] += 1e-5  # a control: a last bit is seen
    other = session("TreeAttention", inputs, library, scaling=0.2).run(None, inputs)[0]
    assert not np.array_equal(other, whole)


def test_a_batch_whose_scores_need_room() -> None:
    """Sequences are taken some at a time: each as it is alone."""
    library = kernels.library()
    if library is None:
        pytest.skip("no kernels: they need a C++ compiler and a processor with AVX2")
    sequences = [attention(256, past, 1500, 16, past) for past in (1400, 300, 900, 1400, 20)]
    alone = [session("TreeAttention", each, library, scaling=0.3).run(None, each)[0] for each in sequences]
    together = batch(*sequences)
    found = session("TreeAttention", together, library, scaling=0.3).run(None, together)[0]
    assert np.array_equal(found, np.concatenate(alone))


def test_an_engine_runs_without_kernels(tiny_int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "library", lambda: None)
    assert plain(Engine.open(tiny_int8), list(range(3, 40)), 8).tokens


def test_kernels_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in (("JAKIRO_KERNELS", "0"), ("CXX", "false")):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            assert kernels.library.__wrapped__() is None
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "_processor", lambda: "flags : avx")
        assert kernels.library.__wrapped__() is None
    assert not list(tmp_path.rglob("*.so"))
