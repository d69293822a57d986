"""The runtime's kernels against the operators' bodies, and each against itself: a row's result is its own, bit for bit.

Both forms are tested on every machine: AVX2 as it is, AVX-512 over a shim where the processor has none.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from answers import plain
from jakiro_export.quantization.hadamard import hadamard
from jakiro_runtime import Engine, kernels
from jakiro_runtime.backends import onnxruntime as backend
from jakiro_runtime.kernels import prebuilt
from kernel_calls import ATTRIBUTES, BODIES, CALLS, Arrays, attention_call, batch, int4_call, int8_call, session
from paths import ROOT

SHIM = ROOT / "tests" / "support" / "avx512_shim.h"


@pytest.fixture(scope="module", params=["as it runs here", pytest.param("the other form", marks=pytest.mark.slow)])
def library(request: pytest.FixtureRequest) -> Path:
    """The form for this CPU, and the other one: AVX2 where it has AVX-512 VNNI, else AVX-512 over a shim."""
    mine = kernels.library()
    if mine is None:
        pytest.skip("no kernels: they need a C++ compiler and a processor with AVX2")
    if request.param == "as it runs here":
        return mine
    has_avx512 = {"avx512_vnni", "avx512bw", "avx512dq", "avx512vl"} <= set(kernels._cpu().split())
    digest = hashlib.sha256(SHIM.read_bytes()).hexdigest()[:8]
    flags = ["-DJAKIRO_AVX512=0"] if has_avx512 else ["-O1", "-include", str(SHIM), f"-DSHIM=0x{digest}"]
    return kernels.compiled(kernels._compiler(), *flags)


def test_the_shim_has_every_instruction_that_the_kernels_use() -> None:
    """On a processor that has the instructions too, where nothing is compiled over the shim."""
    sources = (file.read_text() for file in prebuilt.SOURCES.iterdir() if file.suffix in (".h", ".cpp"))
    used = {name for source in sources for name in re.findall(r"_mm512_\w+", source)}
    assert set(re.findall(r"#define (_mm512_\w+)", SHIM.read_text())) == used


@pytest.mark.parametrize(("name", "inputs"), CALLS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(CALLS)])
def test_a_kernel_computes_what_its_body_does(library: Path, name: str, inputs: Arrays) -> None:
    attributes = ATTRIBUTES.get(name, {})
    expected = session(name, inputs, None, **attributes).run(None, inputs)
    found = session(name, inputs, library, **attributes).run(None, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("name", ["RowInt8MatMul", "SwiGlu"])
def test_the_kernel_is_what_runs(library: Path, name: str) -> None:
    """A control: next to a body that computes something else, the kernel's result stays."""
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
    inputs = (int8_call if name == "RowInt8MatMul" else int4_call)(37, wide)
    together = session(name, inputs, library).run(None, inputs)[0]
    for threads in (1, 3):
        run = session(name, inputs, library, threads)
        for first, count in ((0, 1), (1, 2), (3, 8), (11, 26)):
            some = {**inputs, "x": inputs["x"][:, first : first + count]}
            assert np.array_equal(run.run(None, some)[0], together[:, first : first + count])


@pytest.mark.parametrize("name", ["RowInt8MatMul", "RowInt4MatMul"])
def test_constant_weights_are_kept_by_the_kernel(library: Path, name: str) -> None:
    """Its copy is read, not the graph's: the result is the same, also after another session is gone."""
    inputs = (int8_call if name == "RowInt8MatMul" else int4_call)(5)
    given = {"x": inputs["x"]}
    constants = [each for each in inputs if each != "x"]
    expected = session(name, inputs, library).run(None, inputs)[0]
    many = [session(name, inputs, library, constants=constants) for _ in range(3)]
    del many[0]  # one goes, the others' copies stay
    assert all(np.array_equal(each.run(None, given)[0], expected) for each in many)


def test_rotation_tames_an_outlier(library: Path) -> None:
    """The product against float64, with the rotation and with none: what it is for."""
    inputs = int8_call(16)
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
    inputs = attention_call(chain, past, 96, dim)
    inputs["visible"] = np.tri(chain, dtype=bool)[None]
    together = session("TreeAttention", inputs, library, scaling=0.2).run(None, inputs)[0]
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
        assert np.array_equal(found, together[:, cached:])
    inputs["new_value"][0, 0, 3, 0] += 1e-5  # a control: a last bit is seen
    other = session("TreeAttention", inputs, library, scaling=0.2).run(None, inputs)[0]
    assert not np.array_equal(other, together)


def test_a_batch_whose_scores_need_room() -> None:
    """Sequences are taken some at a time: each as it is alone."""
    library = kernels.library()
    if library is None:
        pytest.skip("no kernels: they need a C++ compiler and a processor with AVX2")
    sequences = [attention_call(256, past, 1500, 16, past) for past in (1400, 300, 900, 1400, 20)]
    alone = [session("TreeAttention", each, library, scaling=0.3).run(None, each)[0] for each in sequences]
    together = batch(*sequences)
    found = session("TreeAttention", together, library, scaling=0.3).run(None, together)[0]
    assert np.array_equal(found, np.concatenate(alone))


def test_an_engine_runs_without_kernels(tiny_int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "library", lambda: None)
    assert plain(Engine.open(tiny_int8), list(range(3, 40)), 8).tokens


def test_kernels_that_are_switched_off_or_that_the_cpu_lacks_cost_no_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setenv("JAKIRO_KERNELS", "0")
        assert kernels.library.__wrapped__() is None
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "_cpu", lambda: "flags : avx")
        assert kernels.library.__wrapped__() is None
    assert not list(tmp_path.iterdir())
    assert not capfd.readouterr().err
