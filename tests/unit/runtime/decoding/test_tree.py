"""A round's bookkeeping, on random trees."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jakiro_runtime.decoding.kv_cache import KVCache, bucket
from jakiro_runtime.decoding.tree import DraftTree, accept, is_tree, subtree, top_nodes, tree_mask


@st.composite
def trees(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and parents of a tree whose siblings differ."""
    above = draw(st.lists(st.integers(0, 1 << 16), max_size=24))
    parents = np.array([number % (node + 1) for node, number in enumerate(above)], np.int64)
    shift = draw(st.integers(0, 40))
    tokens = np.array([shift + np.count_nonzero(parents[:node] == parent) for node, parent in enumerate(parents)], np.int64)
    return tokens, parents


def ancestors(parents: np.ndarray, row: int) -> set[int]:
    found = {row}
    while row:
        row = int(parents[row - 1])
        found.add(row)
    return found


@given(trees(), st.integers(0, 5))
def test_a_row_sees_itself_and_its_ancestors(tree: tuple[np.ndarray, np.ndarray], padding: int) -> None:
    _, parents = tree
    rows = len(parents) + 1
    mask, depths = tree_mask(parents.tolist(), rows + padding)
    for row in range(rows):
        assert set(np.flatnonzero(mask[row]).tolist()) == ancestors(parents, row)
        assert depths[row] == len(ancestors(parents, row)) - 1
    assert (mask[rows:] == np.eye(rows + padding, dtype=bool)[rows:]).all()
    assert depths[rows:] == (0,) * padding


@given(trees(), st.randoms(use_true_random=False))
def test_the_walk_follows_the_target_and_stops_where_the_tree_does(tree: tuple[np.ndarray, np.ndarray], random) -> None:
    tokens, parents = tree
    said: dict[int, int] = {}

    def choose(row: int, path: list[int]) -> int:
        assert row not in said  # visited rows only, each once
        assert path == [int(tokens[n - 1]) for n in sorted(ancestors(parents, row)) if n]
        children = [int(token) for token, parent in zip(tokens, parents, strict=True) if parent == row]
        said[row] = random.choice([*children, 99])
        return said[row]

    rows, chosen = accept(DraftTree(tokens.tolist(), parents.tolist()), choose)
    assert [said[row] for row in rows] == chosen
    assert rows[0] == 0
    for above, row, token in zip(rows, rows[1:], chosen, strict=False):
        assert (parents[row - 1], tokens[row - 1]) == (above, token)
    assert not any((p, t) == (rows[-1], chosen[-1]) for p, t in zip(parents, tokens, strict=True))


@given(trees(), st.integers(1, 30), st.integers(0, 1000))
def test_the_best_nodes_are_a_tree(tree: tuple[np.ndarray, np.ndarray], count: int, seed: int) -> None:
    tokens, parents = tree
    steps = np.random.default_rng(seed).exponential(size=len(tokens)).round(1)  # rounded: ties happen
    scores = np.zeros(len(tokens))
    for node, parent in enumerate(parents):
        scores[node] = (scores[parent - 1] if parent else 0) - steps[node]
    kept = top_nodes(scores.tolist(), parents.tolist(), count)
    assert len(kept) == min(count, len(tokens))
    smaller_tokens, smaller_parents = map(np.array, subtree(tokens.tolist(), parents.tolist(), kept))
    assert is_tree(smaller_parents)
    if len(kept) < len(tokens):
        assert min(scores[kept]) >= max(np.delete(scores, kept))
    for new, old in enumerate(kept):
        path = [int(tokens[n - 1]) for n in sorted(ancestors(parents, old + 1)) if n]
        assert [int(smaller_tokens[n - 1]) for n in sorted(ancestors(smaller_parents, new + 1)) if n] == path


def test_what_is_not_a_tree_is_told() -> None:
    assert not is_tree(np.array([0, 2]))
    assert not is_tree(np.array([-1]))


@given(st.data())
def test_a_commit_touches_the_slots_of_its_path_alone(data: st.DataObject) -> None:
    batch, rows = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    cache = KVCache(
        [("past_key.0", "past_value.0"), ("past_key.1", "past_value.1")], 2, 3, (np.dtype("f4"), np.dtype("f8")), batch
    )
    cache.keys[:], cache.values[:] = -1, -2
    held = [data.draw(st.integers(0, 200)) for _ in range(batch)]
    cache.lengths[:] = held
    keys, values, _ = cache.scratch(rows)
    random = np.random.default_rng(0)
    keys[:], values[:] = random.random(keys.shape), random.random(values.shape)
    paths = [sorted(data.draw(st.sets(st.integers(0, rows - 1)))) for _ in range(batch)]
    cache.commit(keys, values, paths)
    for number, (start, path) in enumerate(zip(held, paths, strict=True)):
        stop = start + len(path)
        assert cache.lengths[number] == stop
        assert (cache.keys[:, number, :, start:stop] == keys[:, number][:, :, path]).all()
        assert (cache.values[:, number, :, start:stop] == values[:, number][:, :, path]).all()
        others = np.delete(cache.keys[:, number], np.s_[start:stop], axis=2)
        assert (others == -1).all()


def test_capacity_grows_in_buckets_and_keeps_what_was_there() -> None:
    assert [bucket(n) for n in (1, 256, 257, 1025)] == [256, 256, 512, 2048]
    cache = KVCache([("past_key", "past_value")], 2, 3, (np.dtype("f4"), np.dtype("f4")))
    keys, values, names = cache.scratch(250)
    assert names["new_key"].base is keys or names["new_key"].base is keys.base
    keys[:], values[:] = 1, 2
    cache.commit(keys, values, [range(250)])
    assert not cache.reserve(256)
    assert cache.reserve(257)
    assert cache.capacity == 512
    assert (cache.keys[..., :250, :] == 1).all()
    assert (cache.values[..., :250, :] == 2).all()
    cache.truncate(0, 300)
    assert cache.lengths[0] == 250
