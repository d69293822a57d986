"""What the kernels would move on a GPU, counted while the CPU runs them. `make bench` prints the same counters."""

from __future__ import annotations

import pytest

from plugin_library import TYPES, Library, Problem
from plugin_traffic import commit, measure


@pytest.mark.parametrize("type", list(TYPES))
@pytest.mark.parametrize("rows", [1, 10, 60, 128])
def test_two_experts_read_each_weight_exactly_once(library: Library, type: str, rows: int) -> None:
    library.check_dispatch(Problem.random(type, rows, 64, 96, 2, 2))
    buffers = library.counters()["buffers"]
    for name in ("gate_up", "down"):
        assert buffers[name]["read"] == buffers[name]["bytes"]


@pytest.mark.parametrize("rows", [1, 128])
def test_odd_sizes_too(library: Library, rows: int) -> None:
    library.check_dispatch(Problem.random("half", rows, 35, 17, 2, 2))
    buffers = library.counters()["buffers"]
    assert all(buffers[name]["read"] == buffers[name]["bytes"] for name in ("gate_up", "down"))


@pytest.mark.parametrize(("experts", "launches"), [(2, 2), (3, 4), (8, 4)])
def test_launches(library: Library, experts: int, launches: int) -> None:
    library.check_dispatch(Problem.random("half", 10, 64, 64, experts, 2))
    assert library.counters()["launches"] == launches


@pytest.mark.parametrize("experts", [2, 4])
def test_no_bank_conflicts(library: Library, experts: int) -> None:
    counters = measure(library, Problem.random("half", 40, 128, 128, experts, 2))
    for site, cost in counters["shared"].items():
        assert cost["units"] == cost["fewest"], f"{site}: {cost}"


@pytest.mark.parametrize("type", list(TYPES))
def test_weights_and_activations_are_read_in_whole_sectors(library: Library, type: str) -> None:
    counters = measure(library, Problem.random(type, 16, 256, 256, 2, 2))
    fragments = [cost for site, cost in counters["global"].items() if site.startswith("tiles.cuh")]
    assert len(fragments) >= 2
    assert all(cost["units"] == cost["fewest"] for cost in fragments)


def test_a_commit_moves_whole_sectors_and_the_accepted_rows_alone(library: Library, capsys: pytest.CaptureFixture) -> None:
    """And `make bench` says so."""
    commit(library, tensors=8, heads=4, accepted=(0, 2, 7))
    said = capsys.readouterr().out
    moved = 8 * 4 * 3 * 128 * 2
    assert f"{{'read': {moved}, 'written': {moved}}}" in said
    sites = [cost for site, cost in library.counters()["global"].items() if site.startswith("kv_commit")]
    rows = sorted(sites, key=lambda cost: cost["units"])[-2:]  # the copy itself; the others read the tables
    assert all(cost["units"] == cost["fewest"] == moved // 32 for cost in rows)
