"""Controls: each of these changes to the kernels must make the tests fail, or the tests prove nothing.

All are compiled into one copy of the sources; a variable says which one is on.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable

import pytest

import plugin_library
from commit_check import check_commit
from group_check import check_group_matmul
from plugin_library import Library, Problem

pytestmark = pytest.mark.slow  # a build of its own

# name: (file, what is there, what the copy has instead); MUTANT is true while that mutant is on.
MUTANTS = {
    "no barrier before the warps' sums are added": ("tiles.cuh", "__syncthreads();", "if (!MUTANT) __syncthreads();"),
    "one buffer for the sums instead of two": ("tiles.cuh", "(j % 2) *", "(MUTANT ? 0 : j % 2) *"),
    "one warp's share of k is left out": ("tiles.cuh", "other < kWarps;", "other < kWarps - MUTANT;"),
    "rows past the activations' end are read": ("tiles.cuh", "slot >= count ?", "!MUTANT && slot >= count ?"),
    "weights past the matrix's end are read": ("gate_up.cuh", "first + group + 8 < p", "MUTANT || first + group + 8 < p"),
    "the mma's operands are in another order": ("mma.cuh", "high.x, low.y,", "MUTANT ? low.y : high.x, MUTANT ? high.x : low.y,"),
    "gate and up are exchanged": (
        "gate_up.cuh", "float gate, float up) {", "float gate, float up) { if (MUTANT) std::swap(gate, up);",
    ),
    "the second expert is skipped": ("gate_up.cuh", "count == 0", "count == 0 || (MUTANT && expert == 1)"),
    "the second expert counts for nothing": ("down_pair.cuh", "factor.y * e1", "(MUTANT ? 0.0f : factor.y) * e1"),
    "the contrast's sign is turned": (
        "down_pair.cuh", "? factor.z * e0 +", "? MUTANT ? -factor.z * e0 - factor.w * e1 : factor.z * e0 +",
    ),
    "a contrast tie goes the other way": ("routing.cuh", "g0 > g1", "(MUTANT ? g0 >= g1 : g0 > g1)"),
    "a tie between experts goes to the higher": (
        "routing.cuh", "own && other < expert", "own && (MUTANT ? other > expert : other < expert)",
    ),
    "the router's barrier is missing": ("route.cuh", "__syncthreads();", "if (!MUTANT) __syncthreads();"),
    "one listed row is lost": ("route.cuh", "if (listed)", "if (listed && !(MUTANT && r == 2))"),
    "the sum leaves out the last expert": ("combine.cuh", "e < p.experts;", "e < p.experts - MUTANT;"),
    "accepted rows land one place off": ("kv_commit.cuh", "(first + i) * units", "(first + i + MUTANT) * units"),
    "no barrier before int4's sums are added": ("group_matmul.cuh", "__syncthreads();", "if (!MUTANT) __syncthreads();"),
    "one buffer for int4's sums": ("group_matmul.cuh", "(j % 2) *", "(MUTANT ? 0 : j % 2) *"),
    "one warp's inputs are left out": ("group_matmul.cuh", "other < kGroupWarps;", "other < kGroupWarps - MUTANT;"),
    "the next group's scale is used": ("group_matmul.cuh", "(k / p.group)", "((k + MUTANT * 32) / p.group)"),
    "int4 is without a sign": (
        "group_matmul.cuh", "static_cast<int>(first << shift) >> 28",
        "(MUTANT ? int(first << shift >> 28) : static_cast<int>(first << shift) >> 28)",
    ),
    "two inputs are exchanged in one operand": (
        "group_matmul.cuh", "low[2] = {input.x,", "low[2] = {MUTANT ? input.z : input.x,",
    ),
    "outputs past the matrix's end are written": (
        "group_matmul.cuh", "|| first + n >= p.out", "|| (!MUTANT && first + n >= p.out)",
    ),
    "rows past the last are read": ("group_matmul.cuh", "if (row < p.rows) input", "if (MUTANT || row < p.rows) input"),
    "rows past the capacity are written": ("kv_commit.cuh", "|| first + i >= p", "|| !MUTANT && first + i >= p"),
}  # fmt: skip


@pytest.fixture(scope="module")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> Library:
    sources = tmp_path_factory.mktemp("mutants") / "plugins"
    shutil.copytree(plugin_library.SOURCES, sources)
    for number, (file, found, instead) in enumerate(MUTANTS.values(), start=1):
        path = sources / "kernels" / file
        text = path.read_text()
        assert text.count(found) == 1, f"{file} has {text.count(found)} times {found!r}: bring this mutant up to date"
        path.write_text(text.replace(found, instead.replace("MUTANT", f"(jakiro_mutant == {number})")))
    with (sources / "shim" / "cuda_runtime.h").open("a") as file:
        file.write("\n#include <utility>\nextern int jakiro_mutant;\n")
    with (sources / "shim" / "control.cpp").open("a") as file:
        file.write('\nextern "C" __attribute__((visibility("default"))) int jakiro_mutant;\nint jakiro_mutant = 0;\n')
    return Library(plugin_library.build(sources, warnings=False))


def suite() -> dict[str, Callable[[Library], None]]:
    """A few of the checks that the other test files make, those that meet every mutant's code."""
    pair, many = Problem.random("half", 21, 72, 56, 2, 2), Problem.random("half", 21, 72, 56, 4, 2)
    wide = Problem.random("half", 4, 264, 24, 2, 2)  # k is long enough for the last of the eight warps to have a share
    ties = Problem.random("half", 12, 32, 32, 3, 1)
    ties.router_logits[:] = 0
    return {
        "two experts": lambda library: library.check_dispatch(pair, seed=1),
        "wide": lambda library: library.check_dispatch(wide, seed=1),
        "four experts": lambda library: library.check_dispatch(many, seed=1),
        "ties": lambda library: library.check_dispatch(ties, seed=1),
        "int4": lambda library: check_group_matmul(library, rows=21, size_in=288, size_out=88, group=32, seed=1),
        "cache": lambda library: check_commit(library, past=[13, 5]),
    }


def failures(library: Library) -> list[str]:
    failed = []
    for name, check in suite().items():
        try:
            check(library)
        except AssertionError:
            failed.append(name)
    return failed


def test_the_copy_without_a_mutant_passes(mutants: Library) -> None:
    ctypes.c_int.in_dll(mutants.c, "jakiro_mutant").value = 0
    assert failures(mutants) == []


@pytest.mark.parametrize("mutant", list(MUTANTS))
def test_fails_where(mutants: Library, mutant: str) -> None:
    ctypes.c_int.in_dll(mutants.c, "jakiro_mutant").value = 1 + list(MUTANTS).index(mutant)
    assert failures(mutants) != []


def test_the_missing_barrier_also_shows_in_the_result(mutants: Library) -> None:
    """Not only in the shim's race check: with shuffled threads the sums themselves come out wrong."""
    name = "no barrier before the warps' sums are added"
    ctypes.c_int.in_dll(mutants.c, "jakiro_mutant").value = 1 + list(MUTANTS).index(name)
    problem = Problem.random("half", 21, 72, 56, 2, 2)
    with pytest.raises(AssertionError, match="values off"):
        mutants.check_dispatch(problem, seed=1, races=False)
