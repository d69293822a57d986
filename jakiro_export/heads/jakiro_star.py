"""Jakiro*: two plain experts whose outputs are two predictions, and a tree whose shape is fixed.

Arithmetic: the published code's. The experts are ranked by the gate. A token's probability is what the two predictions give it
in one softmax over both; the next level continues the first-ranked expert's feature.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from jakiro_export.heads.jakiro import HeadConfig, Layer, Phase, TreeShape
from jakiro_export.ops.attention import KVSegment as Part

# The published tree: a node is the ranks of the candidates on the way to it.
PATHS = tuple(
    tuple(map(int, path))
    for path in (
        *("0", "1", "2", "3", "00", "01", "02", "10", "11", "20", "21", "30", "000", "001", "002", "010", "011", "020"),
        *("021", "100", "0000", "0001", "0002", "00000", "00001", "000000"),
    )
)
SHAPE = TreeShape(depth=max(map(len, PATHS)) - 1, top_k=1 + max(path[-1] for path in PATHS), nodes=len(PATHS))


class StarHead(Layer):
    """A Jakiro* head: experts of `fc`, gelu, `proj` and, in a variant, gelu and `fc1`."""

    def __init__(self, config: HeadConfig, fused: bool) -> None:
        super().__init__(config, fused)
        c = config
        self.router = nn.Linear(c.hidden, c.experts, bias=False)
        self.expert_in = nn.Parameter(torch.empty(c.experts, c.hidden, c.inner))
        self.expert_out = nn.Parameter(torch.empty(c.experts, c.inner, c.hidden))
        self.expert_third = nn.Parameter(torch.empty(c.experts, c.hidden, c.hidden)) if c.third else None

    def predictions(self, x: Tensor, query: Tensor, parts: list[Part]) -> Tensor:
        """The next features by either expert, the first-ranked first, [2, batch, rows, hidden]; x [batch, rows, hidden]."""
        x, normed = self.attend(x, query, parts)
        y = nn.functional.gelu(normed[None] @ self.expert_in) @ self.expert_out  # [2, batch * rows, hidden]
        if self.expert_third is not None:
            y = nn.functional.gelu(y) @ self.expert_third
        gate = self.router(normed)
        in_order = (gate[:, :1] > gate[:, 1:])[None]  # a tie swaps them, as published
        ranked = torch.where(in_order, y, torch.stack([y[1], y[0]]))
        return x[None] + ranked.view(2, *x.shape)


def constants() -> dict[str, np.ndarray]:
    """The fixed tree as index arrays, by the names of StarGraph's buffers.

    picked_L: for each node of level L, its place among the candidates of the rows that level L - 1 expanded
    expanded_L: which nodes of level L have children; source_L: for each of them, the row its feature comes from
    sees_L: for each of them, which of all expanded nodes so far it attends to
    """
    found: dict[str, np.ndarray] = {}
    rows: list[tuple[int, ...]] = [()]
    every: list[tuple[int, ...]] = []
    for level in range(1, SHAPE.depth + 2):
        nodes = [path for path in PATHS if len(path) == level]
        found[f"picked_{level}"] = np.array([rows.index(path[:-1]) * SHAPE.top_k + path[-1] for path in nodes])
        going_on = [path for path in nodes if any(other[:-1] == path for other in PATHS)]
        if going_on:
            every += going_on
            found[f"expanded_{level}"] = np.array([nodes.index(path) for path in going_on])
            found[f"source_{level}"] = np.array([rows.index(path[:-1]) for path in going_on])
            found[f"sees_{level}"] = np.array([[path[: len(other)] == other for other in every] for path in going_on])
            rows = going_on
    found["parents"] = np.array([1 + PATHS.index(path[:-1]) if len(path) > 1 else 0 for path in PATHS])
    return found


class StarGraph(Phase):
    """The drafting phase of a Jakiro* head under the graph contract."""

    head: StarHead

    def __init__(self, head: StarHead, draft_vocab: int | None) -> None:
        super().__init__(head, draft_vocab)
        for name, value in constants().items():
            self.register_buffer(name, torch.empty(value.shape, dtype=torch.bool if value.dtype == bool else torch.int64))

    def _candidates(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The best next tokens after features [2, batch, rows, hidden]: log-probabilities and tokens, [batch, rows, top_k]."""
        logits = nn.functional.linear(features, self.projection).float()
        high, low = torch.maximum(logits[0], logits[1]), torch.minimum(logits[0], logits[1])
        either = high + torch.log(1.0 + torch.exp(low - high))  # [batch, rows, draft_vocab]
        best, index = either.topk(SHAPE.top_k, dim=-1)
        total = best[..., :1] + torch.exp(either - best[..., :1]).sum(-1, keepdim=True).log()
        return best - total, self._tokens(index)

    def tree(self, last: Tensor, query: Tensor, position: Tensor, parts: list[Part]) -> tuple[Tensor, Tensor, Tensor]:
        head = self.head
        features = head.predictions(last, query, parts)
        above = torch.zeros_like(position, dtype=torch.float32)  # scores of the rows that `features` continue
        keys: list[Tensor] = []
        values: list[Tensor] = []
        all_tokens: list[Tensor] = []
        all_scores: list[Tensor] = []
        for level in range(1, SHAPE.depth + 2):
            log_probs, tokens = self._candidates(features)
            picked = self.get_buffer(f"picked_{level}")
            scores = (above[:, :, None] + log_probs).flatten(1)[:, picked]  # [batch, nodes of this level]
            tokens = tokens.flatten(1)[:, picked]
            all_scores.append(scores)
            all_tokens.append(tokens)
            if level == SHAPE.depth + 1:
                break
            expanded = self.get_buffer(f"expanded_{level}")
            width = expanded.shape[0]
            above = scores[:, expanded]
            x = self._input(tokens[:, expanded], features[0][:, self.get_buffer(f"source_{level}")])
            position = position + 1
            query, key, value = head.project(x, position.expand(-1, width))
            keys, values = [*keys, key], [*values, value]
            sees = self.get_buffer(f"sees_{level}").expand(tokens.shape[0], -1, -1)
            drafted = head.beside(torch.cat(keys, 2), torch.cat(values, 2), sees)
            features = head.predictions(x, query, [*parts, drafted])
        tree_parents = self.get_buffer("parents")[None] + torch.zeros_like(position)
        return torch.cat(all_tokens, 1), tree_parents, torch.cat(all_scores, 1)
