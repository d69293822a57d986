"""The plugins' CPU build: compiled once into an ignored folder, then driven through its C interface."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from filelock import FileLock

import plugin_reference as reference
from jakiro_runtime.backends.cuda_memory import KvCommit
from paths import ROOT
from plugin_calls import TYPES, Dispatch, GroupMatMul, declare

SOURCES = ROOT / "plugins"
CACHE = ROOT / ".jakiro" / "plugins"
DTYPES = {"float": np.dtype(np.float32), "half": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]


class Fault(AssertionError):
    """The kernel did what would be undefined on a GPU: a race, a stray access, a barrier not everyone reaches."""


@dataclass
class Problem:
    """One call of ExpertDispatch, in numpy arrays of the activation type."""

    type: str
    x: np.ndarray
    router_logits: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray
    top_k: int
    contrast: bool

    @classmethod
    def random(
        cls, type: str, rows: int, hidden: int, inner: int, experts: int, top_k: int, contrast: bool = True, seed: int = 0
    ) -> Problem:
        random = np.random.default_rng([seed, rows, hidden, inner, experts, top_k])

        def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
            return (random.standard_normal(shape) * scale).astype(DTYPES[type])

        gate_up = draw(experts, 2 * inner, hidden, scale=hidden**-0.5)
        down = draw(experts, hidden, inner, scale=inner**-0.5)
        return cls(type, draw(rows, hidden), draw(rows, experts + 2), gate_up, down, top_k, contrast)

    def expected(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return reference.dispatch(
            self.x, self.router_logits, self.gate_up, self.down, self.top_k, self.contrast, reference.ROUNDING[self.type]
        )


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts on 256 bytes, as device memory does."""
    memory = np.empty(array.nbytes + 256, np.uint8)
    copy = memory[-memory.ctypes.data % 256 :][: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Library:
    """The CPU build of the kernels. `seed` shuffles the order in which threads and blocks run; 0 is the plain order."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.jakiro_shim_schedule.argtypes = [ctypes.c_uint64]
        self.c.jakiro_shim_buffer.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.c.jakiro_shim_counters.restype = ctypes.c_size_t
        declare(self.c)

    def clear(self, detailed: bool = False, seed: int = 0) -> None:
        self.c.jakiro_shim_clear(int(detailed))
        self.c.jakiro_shim_schedule(seed)

    def know(self, name: str, array: np.ndarray, writable: bool = False) -> int:
        self.c.jakiro_shim_buffer(name.encode(), array.ctypes.data, array.nbytes, int(writable))
        return int(array.ctypes.data)

    def counters(self) -> dict:
        text = ctypes.create_string_buffer(self.c.jakiro_shim_counters(None, 0))
        self.c.jakiro_shim_counters(text, len(text))
        return json.loads(text.value)

    def check(self, code: int) -> None:
        text = ctypes.create_string_buffer(1000)
        self.c.jakiro_shim_error(text, len(text))
        if text.value:
            raise Fault(text.value.decode())
        if code != 0:
            raise ValueError(f"CUDA error {code}")

    def dispatch(self, problem: Problem, seed: int = 0, detailed: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(primary, contrast), each [rows, hidden] in the activation type. Raises Fault."""
        rows, hidden = problem.x.shape
        experts, _, inner = problem.down.shape[0], problem.down.shape[1], problem.down.shape[2]
        self.clear(detailed, seed)
        type = TYPES[problem.type]
        size = self.c.jakiro_expert_dispatch_workspace(type, rows, hidden, inner, experts)
        workspace = aligned(np.full(size, 0xFF, np.uint8))
        inputs = {name: aligned(getattr(problem, name)) for name in ("x", "router_logits", "gate_up", "down")}
        outputs = [aligned(np.full((rows, hidden), np.nan, problem.x.dtype)) for _ in range(2)]
        pointers = [self.know(name, array) for name, array in inputs.items()]
        pointers += [self.know(name, array, True) for name, array in zip(("primary", "contrast"), outputs, strict=True)]
        pointers += [self.know("workspace", workspace, True)]
        call = Dispatch(type, rows, hidden, inner, experts, problem.top_k, int(problem.contrast), *pointers)
        self.check(self.c.jakiro_expert_dispatch(ctypes.byref(call), None))
        return outputs[0], outputs[1]

    def check_dispatch(self, problem: Problem, seed: int = 0, races: bool = True) -> None:
        """Runs the problem and compares each output with the reference. Raises AssertionError, of which Fault is one."""
        self.c.jakiro_shim_check_races(int(races))
        try:
            results = self.dispatch(problem, seed)
        finally:
            self.c.jakiro_shim_check_races(1)
        expected, tolerances = problem.expected()
        for name, result, wanted, tolerance in zip(("primary", "contrast"), results, expected, tolerances, strict=True):
            error = np.abs(result.astype(np.float64) - wanted)
            wrong = ~(error <= tolerance)
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise AssertionError(
                    f"{name}: {wrong.sum()} of {wrong.size} values off, the first at [{row}, {column}]: "
                    f"{result[row, column]} where {wanted[row, column]:.6g} +- {tolerance[row, column]:.2g} was expected"
                )

    def group_matmul(
        self, x: np.ndarray, steps: np.ndarray, scales: np.ndarray, type: str, seed: int = 0, detailed: bool = False
    ) -> np.ndarray:
        """x [rows, in] times steps [in, out], -8 to 7, with scales [in / group, out]. Raises Fault."""
        self.clear(detailed, seed)
        codes = (steps & 15).astype(np.uint8)
        arrays = [aligned(x), aligned(codes[:, ::2] | codes[:, 1::2] << 4), aligned(scales)]
        y = aligned(np.full((len(x), steps.shape[1]), np.nan, x.dtype))
        pointers = [self.know(name, array) for name, array in zip(("x", "weights", "scales"), arrays, strict=True)]
        pointers.append(self.know("y", y, True))
        call = GroupMatMul(TYPES[type], len(x), *steps.shape, len(steps) // len(scales), *pointers)
        self.check(self.c.jakiro_group_matmul(ctypes.byref(call), None))
        return y

    def kv_commit(
        self,
        new_rows: list[np.ndarray],
        cache: list[np.ndarray],
        accepted: np.ndarray,
        counts: np.ndarray,
        past_length: np.ndarray,
        seed: int = 0,
        detailed: bool = False,
    ) -> None:
        """Copies into `cache` in place. new_rows[t] [batch, heads, rows, dim], cache[t] [batch, heads, capacity, dim]."""
        self.clear(detailed, seed)
        batch, heads, rows, _ = new_rows[0].shape
        sources = np.array([self.know(f"new_rows.{i}", t) for i, t in enumerate(new_rows)], np.uint64)
        targets = np.array([self.know(f"cache.{i}", t, True) for i, t in enumerate(cache)], np.uint64)
        row_bytes = np.array([t.shape[3] * t.itemsize for t in new_rows], np.int32)
        tables = [sources, targets, row_bytes, accepted, counts, past_length]
        pointers = [self.know(f"table.{i}", t) for i, t in enumerate(tables)]
        call = KvCommit(len(cache), batch, heads, rows, cache[0].shape[2], accepted.shape[1], *pointers)
        self.check(self.c.jakiro_kv_commit(ctypes.byref(call), None))


def build(
    sources: Path = SOURCES,
    defines: tuple[str, ...] = (),
    tensorrt_headers: Path | None = None,
    warnings: bool = True,
) -> Path:
    """Compiles `sources` (a copy of plugins/) for the CPU into a shared library, or finds that in the cache.

    With `tensorrt_headers` the TensorRT plugin is in it, as in a real build.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler: install g++, or name one in CXX")
    state = hashlib.sha256(repr((compiler, FLAGS, defines, str(tensorrt_headers), warnings)).encode())
    for folder in ("kernels", "shim", "include", "plugin"):
        for file in sorted((sources / folder).iterdir()):
            state.update(file.name.encode() + file.read_bytes())
    output = CACHE / f"cpu-{state.hexdigest()[:16]}"
    library = output / "libjakiro_plugins.so"
    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / "lock"):
        if not library.exists():
            _compile(compiler, sources, library, defines, tensorrt_headers, warnings)
    return library


def _compile(
    compiler: str, sources: Path, library: Path, defines: tuple[str, ...], tensorrt_headers: Path | None, warnings: bool
) -> None:
    output = library.parent
    units = [sources / "kernels" / f"dispatch_{name}.cu" for name in TYPES]
    units += [sources / "kernels" / name for name in ("expert_dispatch.cu", "kv_commit.cu", "group_matmul.cu")]
    units += [sources / "shim" / name for name in ("fiber.cpp", "counters.cpp", "control.cpp")]
    flags = FLAGS if warnings else [flag for flag in FLAGS if not flag.startswith("-W")]
    include = ["-DJAKIRO_SHIM", *defines, f"-I{sources / 'shim'}", f"-I{sources / 'include'}"]
    if tensorrt_headers is not None:
        units += sorted((sources / "plugin").glob("*.cpp"))
        include += ["-isystem", str(tensorrt_headers)]

    def compile(unit: Path) -> None:
        run(compiler, *flags, *include, "-x", "c++", "-c", str(unit), "-o", str(output / f"{unit.name}.o"))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile, units))
    partial = output / f"{os.getpid()}.so"
    run(compiler, "-shared", "-o", str(partial), *[str(output / f"{unit.name}.o") for unit in units])
    partial.rename(library)


def run(*command: str) -> str:
    """Runs a command that must succeed; returns what it wrote to either stream."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}"
    return result.stdout
