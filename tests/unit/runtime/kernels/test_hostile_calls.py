"""Calls that a damaged or hostile graph makes: every one ends in a result or in one sentence that names operator and input.

They run in a child process, so that a crash is a failed test. Reads of foreign memory that do not crash: `make fuzz-kernels`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jakiro_runtime import kernels
from kernel_calls import ATTRIBUTES, CALLS, Arrays, session
from paths import ROOT

OPERATORS = dict(reversed(CALLS))  # the first call of each
LENGTHS = {"past_length", "parts", "count"}  # inputs whose values are used as lengths: others are only copied
EXTREMES = (-1, -(2**63), 2**62, 2**31)
Case = tuple[str, np.ndarray, bool]  # an input's name and what it holds instead, and whether the kernel must refuse it


def hostile(inputs: Arrays) -> Iterator[Case]:
    for name, array in inputs.items():
        yield name, np.ones((), array.dtype), True
        for rank in (9, 32):  # as many as NumPy 1 knows
            yield name, array.reshape((1,) * (rank - array.ndim) + array.shape), True
        for axis in range(array.ndim):
            for size in (0, 1, array.shape[axis] + 1):
                yield name, np.resize(array, (*array.shape[:axis], size, *array.shape[axis + 1 :])), False
        if array.dtype == np.int64:
            for value in EXTREMES:
                yield name, np.full_like(array, value), name in LENGTHS
        elif array.dtype.kind == "f":
            for value in (np.nan, np.inf, -np.inf, np.finfo(array.dtype).max):
                yield name, np.full_like(array, value), False
        elif array.dtype == np.bool_:
            yield name, np.full(array.shape, 0x5A, np.uint8).view(bool), False


def variants(operator: str, inputs: Arrays) -> list[list[str]]:
    """Which inputs are constants of the graph: weights are read when the session opens if they are."""
    return [[], [name for name in inputs if name != "x"]] if "MatMul" in operator else [[]]


def run(library: str) -> None:
    """In the child: says each case before it runs on stderr, and its outcome on stdout."""
    for operator, good in OPERATORS.items():
        for name, array, _ in hostile(good):
            inputs = {**good, name: array}
            for constants in variants(operator, inputs):
                print(operator, name, array.shape, array.ravel()[:1], constants, file=sys.stderr, flush=True)
                given = {each: value for each, value in inputs.items() if each not in constants}
                try:
                    session(operator, inputs, Path(library), 1, constants=constants, **ATTRIBUTES.get(operator, {})).run(
                        None, given
                    )
                    outcome = "ran"
                except Exception as error:  # onnxruntime raises types of its own for each status code
                    outcome = str(error).splitlines()[0]
                print(json.dumps([operator, outcome]))


@pytest.mark.slow
def test_a_hostile_call_is_refused_or_harmless() -> None:
    library = kernels.library()
    if library is None:
        pytest.skip("no kernels: they need a C++ compiler and a processor with AVX2")
    paths = [str(Path(__file__).parent), *sys.path]
    program = f"import sys; sys.path[:0] = {paths!r}; import test_hostile_calls as t; t.run({str(library)!r})"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert child.returncode == 0, f"exit code {child.returncode} at {child.stderr[-500:]}"
    outcomes = [json.loads(line) for line in child.stdout.splitlines()]
    cases = [
        (operator, *case) for operator, good in OPERATORS.items() for case in hostile(good) for _ in variants(operator, good)
    ]
    for (operator, name, array, must), (which, outcome) in zip(cases, outcomes, strict=True):
        assert which == operator
        assert not must or f"{operator}: input {name} " in outcome, f"{name} {array.shape} {array.ravel()[:1]}: {outcome}"
