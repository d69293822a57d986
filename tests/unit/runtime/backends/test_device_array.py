"""Arrays on the device behave as NumPy's do, for what the loop asks of them."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_cuda import FakeCuda
from jakiro_runtime.backends import append_runs
from jakiro_runtime.backends.cuda_memory import CudaMemory
from jakiro_runtime.errors import EngineError


def memory() -> CudaMemory:
    return CudaMemory(FakeCuda())


@st.composite
def boxes(draw: Any) -> tuple[tuple[int, ...], Any]:
    """A shape, and an index of numbers, slices and perhaps an ellipsis."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    index: list[Any] = []
    for length in shape[: draw(st.integers(0, len(shape)))]:
        start = draw(st.integers(0, length))
        places = [slice(None), slice(start, draw(st.integers(start, length))), draw(st.integers(-length, length - 1))]
        index.append(draw(st.sampled_from(places)))
    if draw(st.booleans()):
        index.append(Ellipsis)
        index += [slice(0, 1)] * (draw(st.integers(0, 1)) if len(index) <= len(shape) else 0)
    return shape, tuple(index)


@given(boxes(), st.sampled_from(["f2", "f4", "i8", "?"]))
def test_views_are_read_and_written(box: tuple[tuple[int, ...], Any], dtype: str) -> None:
    shape, index = box
    random = np.random.default_rng(0)
    host = random.integers(0, 100, shape).astype(dtype)
    device = memory().upload(host)
    assert device[index].shape == host[index].shape
    np.testing.assert_array_equal(device[index].copy(), host[index])
    new = random.integers(0, 100, host[index].shape).astype(dtype)
    device[index], host[index] = new, new
    np.testing.assert_array_equal(np.asarray(device), host)
    other = device.memory.upload(random.integers(0, 100, shape).astype(dtype))
    other[index] = device[index]
    np.testing.assert_array_equal(other[index].copy(), new)


@given(st.data())
def test_rows_are_appended(data: st.DataObject) -> None:
    """To several caches of several types, against plain loops."""
    layers, batch, heads, rows, capacity = (data.draw(st.integers(1, most)) for most in (3, 3, 3, 6, 12))
    kept = [sorted(data.draw(st.sets(st.integers(0, rows - 1)))) for _ in range(batch)]
    firsts = [data.draw(st.integers(0, max(0, capacity - len(k)))) for k in kept]
    kept = [k[: capacity - first] for k, first in zip(kept, firsts, strict=True)]
    random, store = np.random.default_rng(1), memory()
    pairs, expected = [], []
    for dtype, width in (("f2", 3), ("f8", 2)):
        source = random.standard_normal((layers, batch, heads, rows, width)).astype(dtype)
        target = random.standard_normal((layers, batch, heads, capacity, width)).astype(dtype)
        pairs.append((store.upload(source), store.upload(target)))
        for number, (first, picked) in enumerate(zip(firsts, kept, strict=True)):
            for place, row in enumerate(picked):
                target[:, number, :, first + place] = source[:, number, :, row]
        expected.append(target)
    append_runs(pairs, kept, firsts)
    for (_, found), wanted in zip(pairs, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found), wanted)


def test_memory_is_given_back() -> None:
    cuda = FakeCuda()
    store = CudaMemory(cuda)
    array, staged = store.zeros((4, 5), np.dtype("f4")), store.staging((3,), np.dtype("i8"))
    view = array[1]
    assert len(cuda.blocks) == 2
    assert np.asarray(view).sum() == staged.sum() == 0
    del array
    assert len(cuda.blocks) == 2, "a view keeps its memory"
    del view, staged
    assert not cuda.blocks


def test_what_does_not_fit_is_refused() -> None:
    array = memory().zeros((2, 3), np.dtype("f4"))
    with pytest.raises(ValueError, match="cannot be put"):
        array[0] = array.memory.zeros((3,), np.dtype("f2"))
    with pytest.raises(ValueError, match="cannot be put"):
        array[...] = array.memory.zeros((3, 2), np.dtype("f4"))
    with pytest.raises(IndexError):
        array[2]
    with pytest.raises(IndexError, match="no steps"):
        array[::2]


def test_a_gpu_that_is_full() -> None:
    with pytest.raises(EngineError, match="out of memory"):
        CudaMemory(FakeCuda(memory=100)).zeros((101,), np.dtype("u1"))


def test_a_stream_outlives_the_memory_that_waits_for_it() -> None:
    """All of it garbage at once: Python may finalize the stream's owner first, and the fake refuses a destroyed stream."""
    cuda, refused = FakeCuda(), list[Any]()
    sys.unraisablehook, before = refused.append, sys.unraisablehook
    try:
        owner = CudaMemory(cuda)
        owner.itself, owner.arrays = owner, [owner.upload(np.arange(5)), owner.staging((3,), np.dtype(np.int64))]  # type: ignore[attr-defined]
        del owner
        gc.collect()
    finally:
        sys.unraisablehook = before
    assert not refused
    assert not cuda.streams
    assert not cuda.blocks
