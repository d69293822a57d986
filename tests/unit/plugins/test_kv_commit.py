"""jakiro_kv_commit on the CPU: the accepted rows of every layer at the tail of its cache, and nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest

from commit_check import check_commit
from plugin_library import Library


@pytest.mark.parametrize("past", [[0, 0], [5, 11], [12, 3]])
def test_accepted_rows_go_to_the_tail(library: Library, past: list[int]) -> None:
    check_commit(library, past)


def test_rows_beyond_the_capacity_are_dropped(library: Library) -> None:
    check_commit(library, past=[14, 16])


@pytest.mark.parametrize("dims", [(7, 5, 3), (1, 1, 1), (64, 64, 64)])
def test_any_head_size(library: Library, dims: tuple[int, ...]) -> None:
    check_commit(library, past=[2, 4], dims=dims)


def test_one_launch_for_all_layers(library: Library) -> None:
    check_commit(library, past=[1, 2], dims=(16,) * 12)
    assert library.counters()["launches"] == 1


def test_row_numbers_outside_the_call_are_ignored(library: Library) -> None:
    new_rows, cache = [np.ones((1, 1, 4, 8), np.float16)], [np.zeros((1, 1, 8, 8), np.float16)]
    accepted = np.array([[-1, 4, 2]], np.int64)
    library.kv_commit(new_rows, cache, accepted, np.array([3], np.int64), np.array([0], np.int64))
    assert cache[0].sum(axis=(0, 1, 3)).tolist() == [0, 0, 8, 0, 0, 0, 0, 0]
