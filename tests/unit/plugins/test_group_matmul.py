"""GroupMatMul's kernel on the CPU: the standard operators' result under any schedule, and no byte read twice."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from group_check import check_group_matmul
from plugin_calls import TYPES, GroupMatMul
from plugin_library import Library

CASES = [
    (1, 128, 64, 128), (5, 32, 8, 32), (8, 256, 128, 64), (10, 288, 72, 32), (17, 512, 200, 128),
    (33, 320, 136, 64), (64, 96, 64, 32), (70, 128, 64, 32), (128, 64, 40, 64),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "size_in", "size_out", "group"), CASES)
@pytest.mark.parametrize("type", ["half", "bfloat16"])
def test_it_multiplies_as_the_standard_operators_do(
    library: Library, rows: int, size_in: int, size_out: int, group: int, type: str
) -> None:
    check_group_matmul(library, rows, size_in, size_out, group, type)


@pytest.mark.parametrize("seed", range(1, 6))
def test_the_schedule_changes_nothing(library: Library, seed: int) -> None:
    check_group_matmul(library, 19, 544, 72, 32, seed=seed)
    random = np.random.default_rng(0)
    x, scales = random.standard_normal((19, 544)).astype(np.float16), random.uniform(0.02, 0.1, (17, 72)).astype(np.float16)
    steps = random.integers(-8, 8, (544, 72)).astype(np.int8)
    plain = library.group_matmul(x, steps, scales, "half")
    np.testing.assert_array_equal(library.group_matmul(x, steps, scales, "half", seed), plain)


def test_a_row_does_not_depend_on_the_others(library: Library) -> None:
    random = np.random.default_rng(1)
    x, scales = random.standard_normal((40, 256)).astype(np.float16), random.uniform(0.02, 0.1, (2, 64)).astype(np.float16)
    steps = random.integers(-8, 8, (256, 64)).astype(np.int8)
    together = library.group_matmul(x, steps, scales, "half")
    np.testing.assert_array_equal(library.group_matmul(x[5:6], steps, scales, "half"), together[5:6])


def test_every_weight_is_read_once_and_whole_sectors_at_a_time(library: Library) -> None:
    rows, size_in, size_out = 10, 1024, 512
    random = np.random.default_rng(2)
    x, scales = random.standard_normal((rows, size_in)).astype(np.float16), np.ones((size_in // 128, size_out), np.float16)
    library.group_matmul(x, random.integers(-8, 8, (size_in, size_out)).astype(np.int8), scales, "half", detailed=True)
    counters = library.counters()
    assert counters["launches"] == 1
    assert counters["buffers"]["weights"]["read"] == size_in * size_out // 2, "of 4 bits a weight"
    loads = {site: cost for site, cost in counters["global"].items() if site.startswith("group_matmul")}
    stores = max(loads.values(), key=lambda cost: cost["units"] / cost["fewest"])
    assert len(loads) == 4
    assert all(cost["units"] == cost["fewest"] for cost in loads.values()), stores


@pytest.mark.parametrize(
    "change", [{"group": 16}, {"group": 96}, {"out": 60}, {"in": 100}, {"type": TYPES["float"]}, {"rows": -1}, {"in": 0}]
)
def test_sizes_that_make_no_sense(library: Library, change: dict[str, int]) -> None:
    call = GroupMatMul(TYPES["half"], 1, 128, 64, 64)
    for name, value in change.items():
        setattr(call, name, value)
    assert library.c.jakiro_group_matmul(ctypes.byref(call), None) == 1
