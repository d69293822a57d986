"""Kernels that a wheel carries: the best that the CPU runs is taken, and computes what one compiled for this CPU computes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jakiro_runtime import kernels
from jakiro_runtime.kernels import prebuilt
from kernel_calls import ATTRIBUTES, CALLS, session

AVX512 = prebuilt.FORMS["avx512"].needs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(prebuilt, "_FOLDER", tmp_path)
    kernels.library.cache_clear()
    yield tmp_path
    kernels.library.cache_clear()


def test_the_best_form_for_a_cpu_is_found(folder: Path) -> None:
    for name in prebuilt.FORMS:
        (folder / f"{name}.so").touch()
    assert prebuilt.find(AVX512 | {"sse", "amx_int8"}) == folder / "avx512.so"
    assert prebuilt.find(AVX512 - {"avx512_vnni"}) == folder / "avx2.so"
    assert prebuilt.find(prebuilt.LEAST) is None
    assert prebuilt.find(set()) is None
    (folder / "avx512.so").unlink()
    assert prebuilt.find(AVX512) == folder / "avx2.so"


def test_what_is_carried_is_not_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = kernels.library()
    if mine is None:
        pytest.skip("no kernels: they need a C++ compiler and a processor with AVX2")
    kernels.library.cache_clear()
    shutil.copy(mine, folder / "avx2.so")
    monkeypatch.setattr(kernels, "compiled", lambda *_: pytest.fail("it compiled"))
    assert kernels.library() == folder / "avx2.so"
    monkeypatch.undo()
    other = folder / "damaged"  # a loader knows by its path what it has loaded
    other.mkdir()
    (other / "avx2.so").write_bytes(b"damaged")
    monkeypatch.setattr(prebuilt, "_FOLDER", other)
    kernels.library.cache_clear()
    assert kernels.library() == mine, "one that does not load is not used"


@pytest.mark.slow
def test_every_operator_computes_the_same_to_the_last_bit(folder: Path) -> None:
    mine = kernels.library()
    if mine is None:
        pytest.skip("no kernels: they need a C++ compiler and a processor with AVX2")
    prebuilt.build(kernels._compiler(), ["avx2"])
    carried = prebuilt.find(prebuilt.FORMS["avx2"].needs)
    for name, inputs in CALLS:
        attributes = ATTRIBUTES.get(name, {})
        for ours, theirs in zip(
            session(name, inputs, carried, **attributes).run(None, inputs),
            session(name, inputs, mine, **attributes).run(None, inputs),
            strict=True,
        ):
            assert np.array_equal(ours, theirs), name
