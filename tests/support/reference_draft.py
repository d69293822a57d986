"""The draft phase once more, written plainly from the paper: one sequence, lists and loops, nothing shared with the exporter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
        self.dim = next(value for name, value in self.w.items() if name.endswith("q_proj.weight")).shape[0] // heads

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

    def row(self, token: int, feature: Tensor, position: int, seen: list[Any]) -> tuple[Prediction, Prediction, Any]:
        """The predictions after one row, and its keys and values."""
        x = self.fc(token, feature)
        own = self.key_value(x, position)
        return (*self.layer(x, position, [*seen, own]), own)

    def from_target(self, feature: Tensor) -> Tensor:
        """What an accepted row continues."""
        return feature

    def accepted(
        self, tokens: list[int], features: Tensor, positions: list[int], past: list[Any]
    ) -> tuple[Prediction, Prediction, list[Any]]:
        """The predictions after accepted rows, and the keys and values of all that the tree sees."""
        seen = past
        for token, feature, position in zip(tokens, features.double(), positions, strict=True):
            left, right, own = self.row(token, self.from_target(feature), position, seen)
            seen = [*seen, own]
        return left, right, seen

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
        past: list[Any],
        depth: int,
        k: int,
        nodes: int,
        pairing: str = "parent",
        vocab: list[int] | None = None,
        parallel: bool = True,
    ) -> list[Node]:
        """The tree over accepted rows; `past` has the keys and values of earlier positions."""
        left, right, seen = self.accepted(tokens, features, positions, past)
        candidates = [Node(token, -1, score) for token, score in self.best(left, k, vocab)]
        # a beam entry: candidate number, feature it continues from, keys of its ancestors in the tree
        beam: list[tuple[int, Tensor, list[Any]]] = [(n, self.feature(left), []) for n in range(k)]
        rights, came_from = [right] * k, list(range(k))
        for round_ in range(depth):
            first = len(candidates)
            if round_ < depth - 1 or not parallel:
                position, lefts, rights, keys = positions[-1] + 1 + round_, [], [], []
                for number, feature, ancestors in beam:
                    a, b, own = self.row(candidates[number].token, feature, position, seen + ancestors)
                    lefts.append(a), rights.append(b), keys.append([*ancestors, own])
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
        past: list[Any],
        paths: tuple[tuple[int, ...], ...],
    ) -> list[Node]:
        """A tree of fixed paths: every node from the root again, one at a time."""
        root, _, seen = self.accepted(tokens, features, positions, past)
        nodes = []
        for path in paths:
            prediction, score, above = root, 0.0, []
            for depth, rank in enumerate(path, 1):
                token, log = self.best(prediction, rank + 1, None)[rank]
                score += log
                if depth < len(path):
                    prediction, _, own = self.row(token, self.feature(prediction), positions[-1] + depth, seen + above)
                    above.append(own)
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


class PlainEagle3(PlainDraft):
    """An EAGLE-3 head. A prediction is what a child continues and what is projected; keys and values are one pair a layer.

    flags: norm_before_fc, fc_norm, norm_before_residual, norm_output
    """

    def __init__(self, *arguments: Any, **flags: bool) -> None:
        super().__init__(*arguments)
        self.flags = {name for name, given in flags.items() if given}
        first = "midlayer." if "midlayer.self_attn.q_proj.weight" in self.w else "layers.0."
        later = [f"layers.{n}." for n in range(1, 9) if f"layers.{n}.self_attn.q_proj.weight" in self.w]
        self.prefixes, self.hidden = [first, *later], len(self.w["norm.weight"])
        if "embed_tokens.weight" in self.w:
            self.embedding = self.w["embed_tokens.weight"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[name]

    def from_target(self, feature: Tensor) -> Tensor:
        if "fc.weight" not in self.w:
            return feature
        if "norm_before_fc" in self.flags:
            feature = self.norm(feature, "input_norm.weight")
        if "fc_norm" in self.flags:
            count = sum(name.startswith("fc_norm.") for name in self.w)
            parts = feature.view(count, -1)
            feature = torch.cat([self.norm(part, f"fc_norm.{n}.weight") for n, part in enumerate(parts)])
        return self.w["fc.weight"] @ feature

    def row(self, token: int, feature: Tensor, position: int, seen: list[Any]) -> tuple[Prediction, Prediction, Any]:
        embedded = self.norm(self.embedding[token], f"{self.prefixes[0]}input_layernorm.weight")
        normed = self.norm(feature, f"{self.prefixes[0]}hidden_norm.weight") if "fc.weight" in self.w else feature
        read = torch.cat([embedded, normed])
        x, own = normed if "norm_before_residual" in self.flags else feature, []
        for number, prefix in enumerate(self.prefixes):
            if number:
                read = self.norm(x, f"{prefix}input_layernorm.weight")
            query, key, value = (self.part(prefix, name, read) for name in ("q", "k", "v"))
            query, key = self.rope(query, position), self.rope(key, position)
            own.append((key, value))
            x = x + self.mixed(prefix, query, [pairs[number] for pairs in seen] + [own[-1]])
            inner = self.norm(x, f"{prefix}post_attention_layernorm.weight")
            gate, up, down = (self.w[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
            x = x + down @ (torch.nn.functional.silu(gate @ inner) * (up @ inner))
        scored = self.norm(x, "norm.weight")
        prediction = (scored if "norm_output" in self.flags else x, scored)
        return prediction, prediction, own

    def part(self, prefix: str, name: str, x: Tensor) -> Tensor:
        """Queries, keys or values, [heads, dim], normed where the head does that."""
        base = f"{prefix}self_attn.{name}_"
        found = (self.w[f"{base}proj.weight"] @ x + self.w.get(f"{base}proj.bias", 0)).view(-1, self.dim)
        return self.norm(found, f"{base}norm.weight") if f"{base}norm.weight" in self.w else found

    def mixed(self, prefix: str, query: Tensor, seen: list[tuple[Tensor, Tensor]]) -> Tensor:
        """What attention adds to a row."""
        out = []
        for head in range(self.heads):
            group = head // (self.heads // self.kv_heads)
            share = (torch.stack([query[head] @ key[group] for key, _ in seen]) / self.dim**0.5).softmax(0)
            out.append(sum(p * value[group] for p, (_, value) in zip(share, seen, strict=True)))
        return self.w[f"{prefix}self_attn.o_proj.weight"] @ torch.cat(out) + self.w.get(f"{prefix}self_attn.o_proj.bias", 0)

    def feature(self, prediction: Prediction) -> Tensor:
        return prediction[0]

    def best(self, prediction: Prediction, k: int, vocab: list[int] | None) -> list[tuple[int, float]]:
        own = self.w.get("lm_head.weight", self.embedding)
        tokens = (torch.arange(len(own)) + self.w.get("d2t", torch.zeros(len(own))).long()).tolist()
        rows = [n for n, token in enumerate(tokens) if vocab is None or token in vocab]
        logs, index = (own[rows] @ prediction[1]).log_softmax(0).topk(k)
        return [(tokens[rows[n]], score) for n, score in zip(index.tolist(), logs.tolist(), strict=True)]


class PlainJakiro3(PlainEagle3):
    """A Jakiro-3 head: an EAGLE-3 layer whose MLP is a mixture of two experts with a second guess, their contrast."""

    def row(self, token: int, feature: Tensor, position: int, seen: list[Any]) -> tuple[Prediction, Prediction, Any]:
        embedded = self.norm(self.embedding[token], "midlayer.input_layernorm.weight")
        read = torch.cat([embedded, self.norm(feature, "midlayer.hidden_norm.weight")])
        query, key, value = (self.part("midlayer.", name, read) for name in ("q", "k", "v"))
        own = [(self.rope(key, position), value)]
        x = feature + self.mixed("midlayer.", self.rope(query, position), [pairs[0] for pairs in seen] + own)
        inner, base = self.norm(x, "midlayer.post_attention_layernorm.weight"), "midlayer.mlp_moe."
        expert = []
        for n in range(2):
            gate, up, down = (self.w[f"{base}experts.{n}.{name}_proj.weight"] for name in ("gate", "up", "down"))
            expert.append(down @ (torch.nn.functional.silu(gate @ inner) * (up @ inner)))
        scores = self.w[f"{base}gate.weight"] @ inner
        shares, sides = scores[:2].softmax(0), scores[2:].softmax(0)
        primary = x + shares[0] * expert[0] + shares[1] * expert[1]
        contrast = sides[0] * expert[0] - sides[1] * expert[1]
        contrast = x + (contrast if scores[2] > scores[3] else -contrast)
        return (primary, self.norm(primary, "norm.weight")), (contrast, self.norm(contrast, "norm.weight")), own


class PlainGumiho(PlainEagle3):
    """A Gumiho head: Llama layers, the first without a norm before its attention, and MLPs for the last levels."""

    def __init__(self, *arguments: Any) -> None:
        PlainDraft.__init__(self, *arguments)
        self.prefixes = [f"layers.{n}." for n in range(9) if f"layers.{n}.self_attn.q_proj.weight" in self.w]

    def row(self, token: int, feature: Tensor, position: int, seen: list[Any]) -> tuple[Prediction, Prediction, Any]:
        x, own = self.fc(token, feature), []
        for number, prefix in enumerate(self.prefixes):
            read = self.norm(x, f"{prefix}input_layernorm.weight") if number else x
            query, key, value = (self.part(prefix, name, read) for name in ("q", "k", "v"))
            own.append((self.rope(key, position), value))
            x = x + self.mixed(prefix, self.rope(query, position), [pairs[number] for pairs in seen] + [own[-1]])
            inner = self.norm(x, f"{prefix}post_attention_layernorm.weight")
            gate, up, down = (self.w[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
            x = x + down @ (torch.nn.functional.silu(gate @ inner) * (up @ inner))
        return x, x, own

    def from_target(self, feature: Tensor) -> Tensor:
        return feature

    def feature(self, prediction: Prediction) -> Tensor:
        assert isinstance(prediction, Tensor)
        return prediction

    def best(self, feature: Prediction, k: int, vocab: list[int] | None) -> list[tuple[int, float]]:
        return PlainDraft.best(self, feature, k, vocab)

    def guess(self, number: int, above: tuple[int, Tensor], node: tuple[int, Tensor]) -> Tensor:
        x = torch.cat([self.fc(*above), self.fc(*node)])
        for block in range(9):
            if f"mlp.{number}.{block}.linear.weight" in self.w:
                y = torch.nn.functional.silu(
                    self.w[f"mlp.{number}.{block}.linear.weight"] @ x + self.w[f"mlp.{number}.{block}.linear.bias"]
                )
                x = x + y if block else y
        return x

    def tree(
        self,
        tokens: list[int],
        features: Tensor,
        positions: list[int],
        past: list[Any],
        depth: int,
        k: int,
        nodes: int,
        pairing: str = "parent",
        vocab: list[int] | None = None,
        parallel: bool = True,
    ) -> list[Node]:
        """As `PlainDraft.tree`: levels by the layers, then one by each MLP."""
        mlps = len({name.split(".")[1] for name in self.w if name.startswith("mlp.")})
        serial = max(1, depth - mlps)
        root, _, seen = self.accepted(tokens, features, positions, past)
        assert isinstance(root, Tensor)
        candidates = [Node(token, -1, score) for token, score in self.best(root, k, vocab)]
        # a beam entry: candidate number, feature it continues, keys of its ancestors in the tree
        beam: list[tuple[int, Tensor, list[Any]]] = [(n, root, []) for n in range(k)]
        before, came_from = beam, list(range(k))
        for round_ in range(serial):
            grown, first = [], len(candidates)
            for number, feature, above in beam:
                x, _, own = self.row(candidates[number].token, feature, positions[-1] + 1 + round_, seen + above)
                grown.append((x, [*above, own]))
                score = candidates[number].score
                candidates += [Node(token, number, score + log) for token, log in self.best(x, k, vocab)]
            if round_ < depth - 1:
                order = sorted(range(k * k), key=lambda n: -candidates[first + n].score)[:k]
                came_from, before = [n // k for n in order], beam
                beam = [(first + n, *grown[n // k]) for n in order]
        paths = [(number, n) for n, (number, _, _) in enumerate(beam)]  # candidate, and the beam entry it descends from
        for mlp in range(depth - serial):
            found = []
            for number, n in paths:
                upper = before[came_from[n] if pairing == "parent" else n]
                pair = ((candidates[upper[0]].token, upper[1]), (candidates[beam[n][0]].token, beam[n][1]))
                for token, log in self.best(self.guess(mlp, *pair), k, vocab):
                    candidates.append(Node(token, number, candidates[number].score + log))
                    found.append((len(candidates) - 1, n))
            paths = sorted(found, key=lambda each: -candidates[each[0]].score)[:nodes]
        kept = sorted(sorted(range(len(candidates)), key=lambda n: -candidates[n].score)[:nodes])
        place = {number: n + 1 for n, number in enumerate(kept)}
        return [Node(candidates[n].token, place.get(candidates[n].parent, 0), candidates[n].score) for n in kept]
