"""The draft phase once more, written plainly from the paper: one sequence, lists and loops, nothing shared with the exporter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What a layer predicts after a row: a feature, or two that are ranked
Prediction = Tensor | tuple[Tensor, Tensor]


@dataclass
class Node:
    """A candidate: its token, its parent's number (-1: the root), its cumulative log-probability."""

    token: int
    parent: int
    score: float


class PlainDraft:
    """One head on one sequence. `weights` has the published names; embedding and projection are the target's."""

    def __init__(self, weights: dict[str, Tensor], embedding: Tensor, heads: int, kv_heads: int, theta: float) -> None:
        self.w, self.embedding = {k: v.double() for k, v in weights.items()}, embedding.double()
        self.heads, self.kv_heads, self.theta = heads, kv_heads, theta
        self.dim = self.w["layers.0.self_attn.q_proj.weight"].shape[0] // heads

    def rope(self, x: Tensor, position: int) -> Tensor:
        half = self.dim // 2
        angle = position * self.theta ** (-torch.arange(half, dtype=torch.float64) * 2 / self.dim)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def key_value(self, x: Tensor, position: int) -> tuple[Tensor, Tensor]:
        key = self.projected("k", x).view(self.kv_heads, self.dim)
        value = self.projected("v", x).view(self.kv_heads, self.dim)
        return self.rope(key, position), value

    def projected(self, name: str, x: Tensor) -> Tensor:
        base = f"layers.0.self_attn.{name}_proj."
        return self.w[f"{base}weight"] @ x + self.w.get(f"{base}bias", 0)

    def fc(self, token: int, feature: Tensor) -> Tensor:
        return self.w["fc.weight"] @ torch.cat([self.embedding[token], feature]) + self.w.get("fc.bias", 0)

    def attend(self, x: Tensor, position: int, seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One row that sees the given keys and values, its own among them, after attention; and the same normed."""
        query = self.rope(self.projected("q", x).view(self.heads, self.dim), position)
        out = []
        for head in range(self.heads):
            group = head // (self.heads // self.kv_heads)
            scores = torch.stack([query[head] @ key[group] for key, _ in seen]) / self.dim**0.5
            share = scores.softmax(0)
            out.append(sum(p * value[group] for p, (_, value) in zip(share, seen, strict=True)))
        x = x + self.w["layers.0.self_attn.o_proj.weight"] @ torch.cat(out)
        return x, x / (x.pow(2).mean() + 1e-6).sqrt() * self.w["layers.0.post_attention_layernorm.weight"]

    def layer(self, x: Tensor, position: int, seen: list[tuple[Tensor, Tensor]]) -> tuple[Prediction, Prediction]:
        """(left, right) features of one row."""
        x, normed = self.attend(x, position, seen)
        gate = self.w["layers.0.mlp_moe.gate.weight"] @ normed
        expert = []
        for n in range(2):
            g, u, d = (self.w[f"layers.0.mlp_moe.experts.{n}.{k}_proj.weight"] for k in ("gate", "up", "down"))
            expert.append(d @ (torch.nn.functional.silu(g @ normed) * (u @ normed)))
        w = gate[:2].softmax(0)
        p = gate[2:].softmax(0)
        difference = p[0] * expert[0] - p[1] * expert[1]
        right = difference if gate[2] > gate[3] else -difference
        return x + w[0] * expert[0] + w[1] * expert[1], x + right

    def feature(self, prediction: Prediction) -> Tensor:
        """What a child of the row continues."""
        assert isinstance(prediction, Tensor)
        return prediction

    def best(self, feature: Prediction, k: int, vocab: list[int] | None) -> list[tuple[int, float]]:
        projection = self.embedding if vocab is None else self.embedding[vocab]
        logs, index = (projection @ feature).log_softmax(0).topk(k)
        return [(i if vocab is None else vocab[i], p) for p, i in zip(logs.tolist(), index.tolist(), strict=True)]

    def tree(
        self,
        tokens: list[int],
        features: Tensor,
        positions: list[int],
        past: list[tuple[Tensor, Tensor]],
        depth: int,
        k: int,
        nodes: int,
        pairing: str = "parent",
        vocab: list[int] | None = None,
        parallel: bool = True,
    ) -> list[Node]:
        """The tree over accepted rows; `past` has the keys and values of earlier positions."""
        inputs = [self.fc(token, feature) for token, feature in zip(tokens, features.double(), strict=True)]
        seen = past + [self.key_value(x, p) for x, p in zip(inputs, positions, strict=True)]
        left, right = self.layer(inputs[-1], positions[-1], seen)
        candidates = [Node(token, -1, score) for token, score in self.best(left, k, vocab)]
        # a beam entry: candidate number, feature it continues from, keys of its ancestors in the tree
        beam: list[tuple[int, Tensor, list[tuple[Tensor, Tensor]]]] = [(n, self.feature(left), []) for n in range(k)]
        rights, came_from = [right] * k, list(range(k))
        for round_ in range(depth):
            first = len(candidates)
            if round_ < depth - 1 or not parallel:
                position, lefts, rights, keys = positions[-1] + 1 + round_, [], [], []
                for number, feature, ancestors in beam:
                    x = self.fc(candidates[number].token, feature)
                    own = [*ancestors, self.key_value(x, position)]
                    a, b = self.layer(x, position, seen + own)
                    lefts.append(a), rights.append(b), keys.append(own)
                sources = lefts
            else:
                sources = [rights[row] for row in came_from] if pairing == "parent" else rights
            for (number, _, _), source in zip(beam, sources, strict=True):
                score = candidates[number].score
                candidates += [Node(token, number, score + log) for token, log in self.best(source, k, vocab)]
            if round_ < depth - 1:
                order = sorted(range(k * k), key=lambda n: -candidates[first + n].score)[:k]
                came_from = [n // k for n in order]
                beam = [(first + n, self.feature(lefts[n // k]), keys[n // k]) for n in order]
        kept = sorted(sorted(range(len(candidates)), key=lambda n: -candidates[n].score)[:nodes])
        place = {number: n + 1 for n, number in enumerate(kept)}
        return [Node(candidates[n].token, place.get(candidates[n].parent, 0), candidates[n].score) for n in kept]

    def static_tree(
        self,
        tokens: list[int],
        features: Tensor,
        positions: list[int],
        past: list[tuple[Tensor, Tensor]],
        paths: tuple[tuple[int, ...], ...],
    ) -> list[Node]:
        """A tree of fixed paths: every node from the root again, one at a time."""
        inputs = [self.fc(token, feature) for token, feature in zip(tokens, features.double(), strict=True)]
        seen = past + [self.key_value(x, p) for x, p in zip(inputs, positions, strict=True)]
        nodes = []
        for path in paths:
            (prediction, _), score, own = self.layer(inputs[-1], positions[-1], seen), 0.0, []
            for depth, rank in enumerate(path, 1):
                token, log = self.best(prediction, rank + 1, None)[rank]
                score += log
                if depth < len(path):
                    x = self.fc(token, self.feature(prediction))
                    own.append(self.key_value(x, positions[-1] + depth))
                    prediction, _ = self.layer(x, positions[-1] + depth, seen + own)
            nodes.append(Node(token, 1 + paths.index(path[:-1]) if len(path) > 1 else 0, score))
        return nodes


class PlainStar(PlainDraft):
    """A Jakiro* head."""

    # ranks of the candidates on the way to each node of the published tree
    TREE = tuple(
        tuple(map(int, path))
        for path in (
            *("0", "1", "2", "3", "00", "01", "02", "10", "11", "20", "21", "30", "000", "001", "002", "010", "011", "020"),
            *("021", "100", "0000", "0001", "0002", "00000", "00001", "000000"),
        )
    )

    def layer(self, x: Tensor, position: int, seen: list[tuple[Tensor, Tensor]]) -> tuple[Prediction, Prediction]:
        """The two features of one row, the one the gate prefers first; nothing for a parallel step."""
        x, normed = self.attend(x, position, seen)
        gate = self.w["layers.0.mlp_moe.gate.weight"] @ normed
        found = []
        for n in range(2):
            base = f"layers.0.mlp_moe.experts.{n}."
            y = self.w[f"{base}proj.weight"] @ torch.nn.functional.gelu(self.w[f"{base}fc.weight"] @ normed)
            if f"{base}fc1.weight" in self.w:
                y = self.w[f"{base}fc1.weight"] @ torch.nn.functional.gelu(y)
            found.append(x + y)
        pair = (found[0], found[1]) if gate[0] > gate[1] else (found[1], found[0])
        return pair, pair

    def feature(self, prediction: Prediction) -> Tensor:
        return prediction[0]

    def best(self, prediction: Prediction, k: int, vocab: list[int] | None) -> list[tuple[int, float]]:
        """The best tokens under one softmax over both predictions."""
        assert vocab is None
        logits = torch.stack([self.embedding @ feature for feature in prediction])
        logs, index = logits.flatten().log_softmax(0).view(2, -1).logsumexp(0).topk(k)
        return list(zip(index.tolist(), logs.tolist(), strict=True))


class PlainEagle(PlainDraft):
    """An EAGLE head: one MLP. It has nothing for a parallel step."""

    def layer(self, x: Tensor, position: int, seen: list[tuple[Tensor, Tensor]]) -> tuple[Prediction, Prediction]:
        x, normed = self.attend(x, position, seen)
        gate, up, down = (self.w[f"layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        feature = x + down @ (torch.nn.functional.silu(gate @ normed) * (up @ normed))
        return feature, feature
