"""How a draft tree is grown from the predictions of any head: by a dynamic beam, or along static paths.

A tree sees the head through `DraftModel`: `embed` makes a row's input of a token and the feature it continues, `predict` runs
rows through the layer, `candidates` reads the best tokens off a prediction. Both kinds grow breadth first, one forward a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from jakiro_export.heads.config import TreeShape
from jakiro_export.heads.model import DraftModel, DraftTree, LastRows, Prediction, TreeOutputs, gather_rows


class _TreeRows:
    """The tree's own rows in the head's layers, a level at a time: each level attends to its ancestors' keys."""

    def __init__(self, model: DraftModel, last: LastRows) -> None:
        self._model, self._last, self._position = model, last, last.position
        self._keys: list[list[Tensor]] = [[] for _ in model.layers]
        self._values: list[list[Tensor]] = [[] for _ in model.layers]

    def first(self, parallel: bool) -> Prediction:
        """The prediction after the last accepted row."""
        return self._model.predict(self._last.x, self._last.query, self._last.segments[-1], parallel)

    def level(self, tokens: Tensor, features: Tensor, visible: Tensor, parallel: bool) -> Prediction:
        """The prediction after one level's nodes.

        Args:
            tokens: [batch, rows]
            features: those that the nodes continue, [batch, rows, hidden]
            visible: which of the tree's rows so far each attends to, itself included, [batch or 1, rows, tree rows]
        """
        x = self._model.embed(tokens, features)
        self._position = self._position + 1
        for layer, keys, values, above in zip(self._model.layers, self._keys, self._values, self._last.segments, strict=True):
            query, key, value = layer.project(x, self._position.expand(-1, tokens.shape[1]))
            keys.append(key)
            values.append(value)
            segments = [*above, layer.new_rows(torch.cat(keys, 2), torch.cat(values, 2), visible)]
            if layer is not self._model.head:
                x = layer.features(x, query, segments)  # type: ignore[operator]
        return self._model.predict(x, query, segments, parallel)


class DynamicBeam(DraftTree):
    """A beam of `top_k` nodes a level; of all candidates the `nodes` likeliest are kept (EAGLE-2, arXiv 2406.16858).

    With the parallel step the last two levels come from one forward (arXiv 2502.06282): the head's primary output gives the next
    level, its second guess the one after it.
    """

    searchable = True

    def reshaped(self, shape: TreeShape) -> DynamicBeam:
        return DynamicBeam(replace(shape, parallel=shape.parallel and self.shape.parallel))

    def grow(self, model: DraftModel, last: LastRows) -> TreeOutputs:
        shape, width, device = self.shape, self.shape.top_k, last.x.device
        rows, select = _TreeRows(model, last), model.head.selection
        last_pass = shape.depth - 2 if shape.parallel else shape.depth - 1
        prediction = rows.first(parallel=last_pass < 0)
        second_guess = prediction.parallel
        scores, tokens = model.candidates(prediction.scored, width)
        scores, tokens = scores[:, 0], tokens[:, 0]  # the first beam: [batch, top_k]
        features = prediction.feature.expand(-1, width, -1)

        # every candidate so far; a candidate's number is its place in this list
        all_scores, all_tokens, all_parents = [scores], [tokens], [torch.full_like(tokens, -1)]
        beam = torch.arange(width, device=device).expand_as(tokens)  # the beam's candidate numbers
        count = width
        itself = torch.eye(width, dtype=torch.bool, device=device).expand(tokens.shape[0], width, width)
        ancestors = itself  # [batch, top_k, tree rows so far]
        source = torch.zeros_like(tokens)  # which row of the last pass a beam entry continues

        for round_ in range(shape.depth):
            if round_ <= last_pass:
                parallel = shape.parallel and round_ == last_pass
                prediction = rows.level(tokens, features, ancestors, parallel)
                features = prediction.feature
                if parallel:
                    second_guess = prediction.parallel
                log_probs, next_tokens = model.candidates(prediction.scored, width)  # [batch, top_k, top_k]
            else:
                assert second_guess is not None
                log_probs, next_tokens = model.candidates(second_guess, width)
                if shape.depth > 1 and shape.pairing == "parent":
                    log_probs, next_tokens = gather_rows(log_probs, source), gather_rows(next_tokens, source)
            if next_tokens.shape[1] != width:  # depth 1: one row's candidates for the whole beam
                log_probs, next_tokens = (each.expand(-1, width, -1) for each in (log_probs, next_tokens))
            totals, flat_tokens, parents = select.propose(scores, log_probs, next_tokens, beam)  # [batch, top_k * top_k]
            all_scores.append(totals)
            all_tokens.append(flat_tokens)
            all_parents.append(parents)
            if round_ < shape.depth - 1:
                scores, chosen = totals.topk(width, dim=-1)
                source = torch.div(chosen, width, rounding_mode="floor")
                tokens = torch.gather(flat_tokens, 1, chosen)
                features = gather_rows(features, source)
                beam = chosen + count
                ancestors = torch.cat([gather_rows(ancestors.float(), source) > 0.5, itself], -1)
            count += width * width
        every = (torch.cat(each, 1) for each in (all_scores, all_tokens, all_parents))
        best: TreeOutputs = select.best_nodes(*every, shape.nodes)
        return best


class StaticPaths(DraftTree):
    """A tree whose nodes are fixed before anything is drafted, each by the ranks of the candidates on the way to it.

    Args:
        paths: one a node, parents before their children: (0, 2) is the third candidate after the first one
    """

    searchable = False

    def __init__(self, paths: Sequence[tuple[int, ...]]) -> None:
        depth, top_k = max(map(len, paths)) - 1, 1 + max(path[-1] for path in paths)
        super().__init__(TreeShape(depth=depth, top_k=top_k, nodes=len(paths)))
        self.paths = tuple(paths)

    def reshaped(self, shape: TreeShape) -> StaticPaths:
        return self

    def constants(self) -> dict[str, np.ndarray]:
        """The paths as index arrays.

        picked_L: for each node of level L, its place among the candidates of the rows that level L - 1 expanded
        expanded_L: which nodes of level L have children; source_L: for each of them, the row its feature comes from
        sees_L: for each of them, which of all expanded nodes so far it attends to
        parents: tree_parents of the contract
        """
        paths, found = self.paths, dict[str, np.ndarray]()
        rows: list[tuple[int, ...]] = [()]
        every: list[tuple[int, ...]] = []
        for level in range(1, self.shape.depth + 2):
            nodes = [path for path in paths if len(path) == level]
            found[f"picked_{level}"] = np.array([rows.index(path[:-1]) * self.shape.top_k + path[-1] for path in nodes])
            going_on = [path for path in nodes if any(other[:-1] == path for other in paths)]
            if going_on:
                every += going_on
                found[f"expanded_{level}"] = np.array([nodes.index(path) for path in going_on])
                found[f"source_{level}"] = np.array([rows.index(path[:-1]) for path in going_on])
                found[f"sees_{level}"] = np.array([[path[: len(other)] == other for other in every] for path in going_on])
                rows = going_on
        found["parents"] = np.array([1 + paths.index(path[:-1]) if len(path) > 1 else 0 for path in paths])
        return found

    def grow(self, model: DraftModel, last: LastRows) -> TreeOutputs:
        rows, index = _TreeRows(model, last), model.get_buffer
        prediction = rows.first(parallel=False)
        above = torch.zeros_like(last.position, dtype=torch.float32)  # scores of the rows that the prediction continues
        all_tokens: list[Tensor] = []
        all_scores: list[Tensor] = []
        for level in range(1, self.shape.depth + 2):
            log_probs, tokens = model.candidates(prediction.scored, self.shape.top_k)
            picked = index(f"picked_{level}")
            scores = (above[:, :, None] + log_probs).flatten(1)[:, picked]  # [batch, nodes of this level]
            tokens = tokens.flatten(1)[:, picked]
            all_scores.append(scores)
            all_tokens.append(tokens)
            if level == self.shape.depth + 1:
                break
            expanded = index(f"expanded_{level}")
            above = scores[:, expanded]
            features = prediction.feature[:, index(f"source_{level}")]
            sees = index(f"sees_{level}").expand(tokens.shape[0], -1, -1)
            prediction = rows.level(tokens[:, expanded], features, sees, parallel=False)
        tree_parents = index("parents")[None] + torch.zeros_like(last.position)
        return torch.cat(all_tokens, 1), tree_parents, torch.cat(all_scores, 1)
