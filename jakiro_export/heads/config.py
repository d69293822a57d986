"""The sizes that every draft head has, and the shape of a tree."""

from __future__ import annotations

from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The sizes that every head has. Families add their own.

    hidden: width of the head's rows, and of the features that it gives
    vocab: tokens of the target that it was trained for
    layers: each with a cache of its own
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    layers: int = 1

    @property
    def target_hidden(self) -> int:
        """Width of the target that it was trained for."""
        return self.hidden


@dataclass(frozen=True)
class TreeShape:
    """The shape of a tree, as engine.json records it.

    depth: rounds after the first forward; the tree has depth + 1 levels
    top_k: nodes expanded a level, and candidates of each
    nodes: nodes kept, the root not counted
    pairing: which input of the parallel step a node of the last level takes its candidates from: its parent's
        ("parent") or the one of the same number ("published", as the reference code does)
    parallel: the last level's candidates come from the parallel step; False gives that level a pass of its own, for heads that
        learned no second guess
    """

    depth: int = 5
    top_k: int = 8
    nodes: int = 31
    pairing: str = "parent"
    parallel: bool = True

    @property
    def candidates(self) -> int:
        """Nodes proposed in all, of which `nodes` are kept."""
        return self.top_k + self.depth * self.top_k**2
