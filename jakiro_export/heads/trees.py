"""How a draft tree is grown from the predictions of any head: by a dynamic beam, along static paths, or the last levels at once.

A tree sees the head through `DraftModel`: `embed` makes a row's input of a token and the feature it continues, `predict` runs
rows through the layer, `candidates` reads the best tokens off a prediction. All kinds grow breadth first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

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


class _Beam(NamedTuple):
    """The nodes that a level is grown from, [batch, rows] each.

    numbers: of the candidates that they are
    source: the row of the level above, of those that candidates were proposed for, that each continues
    """

    scores: Tensor
    tokens: Tensor
    numbers: Tensor
    source: Tensor


class _Candidates:
    """Every candidate that was proposed so far; its number is its place in the list."""

    def __init__(self, model: DraftModel, prediction: Prediction, width: int) -> None:
        self._select = model.head.selection
        scores, tokens = (each[:, 0] for each in model.candidates(prediction.scored, width))  # [batch, width]
        self._scores, self._tokens, self._parents = [scores], [tokens], [torch.full_like(tokens, -1)]
        self._count = width
        numbers = torch.arange(width, device=tokens.device).expand_as(tokens)
        self.first = _Beam(scores, tokens, numbers, torch.zeros_like(tokens))

    def propose(self, beam: _Beam, log_probs: Tensor, tokens: Tensor, width: int | None) -> _Beam | None:
        """Add the candidates of a beam's rows, [batch, rows, k] each.

        Returns:
            the best `width` of them; None where `width` is
        """
        k = tokens.shape[-1]
        totals, flat, parents = self._select.propose(beam.scores, log_probs, tokens, beam.numbers)  # [batch, rows * k]
        self._scores, self._tokens, self._parents = [*self._scores, totals], [*self._tokens, flat], [*self._parents, parents]
        first = self._count
        self._count += tokens.shape[1] * k
        if width is None:
            return None
        scores, chosen = totals.topk(width, dim=-1)
        source = torch.div(chosen, k, rounding_mode="floor")
        return _Beam(scores, torch.gather(flat, 1, chosen), chosen + first, source)

    def best(self, nodes: int) -> TreeOutputs:
        """The likeliest candidates, as the contract has them."""
        every = (torch.cat(each, 1) for each in (self._scores, self._tokens, self._parents))
        found: TreeOutputs = self._select.best_nodes(*every, nodes)
        return found


class DynamicBeam(DraftTree):
    """A beam of `top_k` nodes a level; of all candidates the `nodes` likeliest are kept (EAGLE-2, arXiv 2406.16858).

    With the parallel step the last two levels come from one forward (arXiv 2502.06282): the head's primary output gives the next
    level, its second guess the one after it.
    """

    searchable = True

    @property
    def passes(self) -> list[int]:
        return [1] + [self.shape.top_k] * (self.shape.depth - (1 if self.shape.parallel else 0))

    def reshaped(self, shape: TreeShape) -> DynamicBeam:
        return DynamicBeam(replace(shape, parallel=shape.parallel and self.shape.parallel))

    def grow(self, model: DraftModel, last: LastRows) -> TreeOutputs:
        shape, width = self.shape, self.shape.top_k
        rows = _TreeRows(model, last)
        last_pass = shape.depth - 2 if shape.parallel else shape.depth - 1
        prediction = rows.first(parallel=last_pass < 0)
        second_guess = prediction.parallel
        candidates = _Candidates(model, prediction, width)
        beam, features = candidates.first, prediction.feature.expand(-1, width, -1)
        ancestors = itself = _itself(beam.tokens)  # [batch, top_k, tree rows so far]

        for round_ in range(shape.depth):
            if round_ <= last_pass:
                parallel = shape.parallel and round_ == last_pass
                prediction = rows.level(beam.tokens, features, ancestors, parallel)
                features = prediction.feature
                if parallel:
                    second_guess = prediction.parallel
                log_probs, next_tokens = model.candidates(prediction.scored, width)  # [batch, top_k, top_k]
            else:
                assert second_guess is not None
                log_probs, next_tokens = model.candidates(second_guess, width)
                if shape.depth > 1 and shape.pairing == "parent":
                    log_probs, next_tokens = gather_rows(log_probs, beam.source), gather_rows(next_tokens, beam.source)
            if next_tokens.shape[1] != width:  # depth 1: one row's candidates for the whole beam
                log_probs, next_tokens = (each.expand(-1, width, -1) for each in (log_probs, next_tokens))
            grown = candidates.propose(beam, log_probs, next_tokens, width if round_ < shape.depth - 1 else None)
            if grown is not None:
                beam, features = grown, gather_rows(features, grown.source)
                ancestors = torch.cat([gather_rows(ancestors.float(), beam.source) > 0.5, itself], -1)
        return candidates.best(shape.nodes)


class Guessing(ABC):
    """What a model gives besides, of which the last levels are drawn in parallel."""

    @abstractmethod
    def guess(self, tokens: tuple[Tensor, Tensor], features: tuple[Tensor, Tensor], count: int) -> Tensor:
        """Predictions of the next tokens after some nodes, one after the other, [batch, rows, count, hidden].

        Args:
            tokens, features: of the nodes' parents and of the nodes, [batch, rows] and [batch, rows, hidden]; features are those
                that a node continues
        """


class SerialThenParallel(DraftTree):
    """A beam whose last levels come from one parallel step, a guess a level (Gumiho, arXiv 2503.10135).

    A guess depends on the last two nodes before the step, not on the guesses before it. `guesses` of them are used where the
    depth leaves at least one pass before them.
    """

    searchable = True

    def __init__(self, shape: TreeShape, guesses: int) -> None:
        super().__init__(shape)
        self.guesses = guesses

    @property
    def serial(self) -> int:
        """Levels after the first one that have a pass of their own."""
        return max(min(1, self.shape.depth), self.shape.depth - self.guesses)

    @property
    def passes(self) -> list[int]:
        return [1] + [self.shape.top_k] * self.serial

    def reshaped(self, shape: TreeShape) -> SerialThenParallel:
        return SerialThenParallel(shape, self.guesses)

    def grow(self, model: DraftModel, last: LastRows) -> TreeOutputs:
        assert isinstance(model, Guessing)
        shape, width = self.shape, self.shape.top_k
        serial = self.serial
        rows = _TreeRows(model, last)
        prediction = rows.first(parallel=False)
        candidates = _Candidates(model, prediction, width)
        beam, features = candidates.first, prediction.feature.expand(-1, width, -1)
        ancestors = itself = _itself(beam.tokens)
        for round_ in range(serial):
            prediction = rows.level(beam.tokens, features, ancestors, parallel=False)
            log_probs, next_tokens = model.candidates(prediction.scored, width)
            before, given = beam, features
            grown = candidates.propose(beam, log_probs, next_tokens, width if round_ < shape.depth - 1 else None)
            if grown is not None:
                beam, features = grown, gather_rows(prediction.feature, grown.source)
                ancestors = torch.cat([gather_rows(ancestors.float(), beam.source) > 0.5, itself], -1)
        count = shape.depth - serial
        if count:
            above, continued = before.tokens, given
            if shape.pairing == "parent":  # the published code takes the node of the same number
                above, continued = torch.gather(above, 1, beam.source), gather_rows(given, beam.source)
            guessed = model.guess((above, beam.tokens), (continued, features), count)
            log_probs, next_tokens = model.candidates(guessed.flatten(1, 2), width)  # [batch, top_k * count, top_k]
            log_probs, next_tokens = (each.unflatten(1, (-1, count)) for each in (log_probs, next_tokens))
            origin = torch.arange(width, device=beam.tokens.device).expand_as(beam.tokens)  # the row that was guessed from
            for level in range(count):
                # a node that is not among the best `nodes` of its level is not among the best of all
                kept = min(shape.nodes, beam.tokens.shape[1] * width) if level < count - 1 else None
                own_probs, own_tokens = (gather_rows(each[:, :, level], origin) for each in (log_probs, next_tokens))
                grown = candidates.propose(beam, own_probs, own_tokens, kept)
                if grown is not None:
                    beam, origin = grown, torch.gather(origin, 1, grown.source)
        return candidates.best(shape.nodes)


def _itself(tokens: Tensor) -> Tensor:
    """Who sees whom where each of a level's rows sees itself alone, [batch, rows, rows]."""
    rows = tokens.shape[1]
    return torch.eye(rows, dtype=torch.bool, device=tokens.device).expand(tokens.shape[0], rows, rows)


class StaticPaths(DraftTree):
    """A tree whose nodes are fixed before anything is drafted, each by the ranks of the candidates on the way to it.

    Args:
        paths: one a node, parents before their children: (0, 2) is the third candidate after the first one
    """

    searchable = False

    def __init__(self, paths: Sequence[tuple[int, ...]]) -> None:
        depth, top_k = max(map(len, paths)) - 1, 1 + max(path[-1] for path in paths)
        super().__init__(TreeShape(depth=depth, top_k=top_k, nodes=len(paths), parallel=False))
        self.paths = tuple(paths)

    @property
    def passes(self) -> list[int]:
        parents = {path[:-1] for path in self.paths}
        return [sum(len(path) == level for path in parents) for level in range(self.shape.depth + 1)]

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


def paths(*ranks: str) -> list[tuple[int, ...]]:
    """Paths from their digits: "02" is the third candidate after the first one."""
    return [tuple(map(int, each)) for each in ranks]


# The tree of EAGLE-1's published code (arXiv 2401.15077), and of Jakiro*, which has one node more
EAGLE_PATHS = paths(
    *("0", "1", "2", "3", "00", "01", "02", "10", "11", "20", "21", "30", "000", "001", "002", "010", "011", "020", "021", "100"),
    *("0000", "0001", "0002", "00000", "00001"),
)
