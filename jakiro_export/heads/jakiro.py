"""The head, and the whole drafting phase unrolled into one graph.

Arithmetic: arXiv 2502.06282 and the published checkpoints. The tree is grown breadth first: a beam of `top_k` nodes a level, the
last two levels from one forward (the primary output gives the next level, the contrast output the one after it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jakiro_export.ops import registry, selection
from jakiro_export.ops.attention import KVSegment as Part
from jakiro_export.ops.attention import additive_mask, attention, past_mask, tile_groups
from jakiro_export.ops.expert_dispatch import fused_expert_dispatch
from jakiro_export.ops.rms_norm import fused_rms_norm, rms_norm
from jakiro_export.ops.rotary import fused_rotary
from jakiro_export.ops.tree_attention import fused_tree_attention


@dataclass(frozen=True)
class TreeShape:
    """The shape of the tree a draft graph grows.

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


@dataclass(frozen=True)
class HeadConfig:
    """The sizes of a published head (`config.json`)."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    inner: int
    vocab: int
    fc_bias: bool
    qkv_bias: bool
    norm_eps: float
    llama: LlamaConfig
    star: bool = False  # Jakiro*: plain experts whose outputs are two predictions
    third: bool = False  # Jakiro*: its experts have a third matrix

    @staticmethod
    def from_dict(config: dict[str, Any]) -> HeadConfig:
        """Read a head's `config.json`. Raises KeyError for a missing field, ValueError for an unusable one."""
        llama = LlamaConfig(**{key: value for key, value in config.items() if key not in ("architectures", "dtype")})
        heads = int(config["num_attention_heads"])
        return HeadConfig(
            hidden=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads", heads)),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            experts=int(config.get("num_local_experts", 2)),
            experts_per_token=int(config.get("num_experts_per_tok", 2)),
            inner=int(config.get("intermediate") or config["hidden_size"]),
            vocab=int(config["vocab_size"]),
            fc_bias=bool(config.get("bias", True)),
            qkv_bias=bool(config.get("qkv_bias", False)),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            llama=llama,
        )


class Layer(nn.Module):
    """What every kind of head has: fc over (embedding, feature), attention without a norm before it, a norm after it."""

    def __init__(self, config: HeadConfig, fused: bool) -> None:
        super().__init__()
        c, self.config, self.fused = config, config, fused
        self.one_operator = False  # attention as one operator
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.fc = nn.Linear(2 * c.hidden, c.hidden, bias=c.fc_bias)
        self.q_proj = nn.Linear(c.hidden, q, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden, kv, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden, kv, bias=c.qkv_bias)
        self.o_proj = nn.Linear(q, c.hidden, bias=False)
        self.norm = nn.Parameter(torch.empty(c.hidden))
        self.rotary = LlamaRotaryEmbedding(c.llama)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.config.head_dim)).transpose(1, 2)

    def project(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, heads, rows, head_dim], keys and values [batch, kv_heads, ...] of inputs [batch, rows, hidden]."""
        angles = position_ids[:, :, None].float() * self.rotary.inv_freq.float()
        scaling = self.rotary.attention_scaling
        cos, sin = ((each if scaling == 1 else each * scaling).to(x.dtype) for each in (angles.cos(), angles.sin()))
        rotate, kv = fused_rotary if self.fused else _rotary, self.config.kv_heads
        query, key = self._heads(self.q_proj(x), self.config.heads), self._heads(self.k_proj(x), kv)
        return rotate(query, cos, sin), rotate(key, cos, sin), self._heads(self.v_proj(x), kv)

    def past(self, key: Tensor, value: Tensor, length: Tensor) -> Part:
        """The cache, [batch, kv_heads, capacity, head_dim], of which each sequence has filled `length` slots, [batch]."""
        if self.one_operator:
            return Part(key, value, length)
        return Part(key, value, past_mask(key, length, key.dtype))

    def beside(self, key: Tensor, value: Tensor, visible: Tensor) -> Part:
        """Rows of this call, and which of them the queries see: [batch, 1 or queries, rows]."""
        if self.one_operator:
            return Part(key, value, visible)
        mask, groups = additive_mask(visible, key.dtype), self.config.heads // self.config.kv_heads
        return Part(key, value, mask[:, None] if visible.shape[1] == 1 else tile_groups(mask, groups))

    def _seen(self, query: Tensor, parts: list[Part]) -> Tensor:
        """Attention, [batch, rows, heads * head_dim]; `parts` as `past` and `beside` made them."""
        scaling = self.config.head_dim**-0.5
        if not self.one_operator:
            return attention(query, parts, scaling, bitwise=False).transpose(1, 2).flatten(2)
        past, *new = parts
        key, value = torch.cat([part.key for part in new], 2), torch.cat([part.value for part in new], 2)
        visible = torch.cat([part.mask.expand(-1, query.shape[2], -1) for part in new], -1)
        return fused_tree_attention(query, past.key, past.value, key, value, past.mask, visible, scaling).flatten(2)

    def attend(self, x: Tensor, query: Tensor, parts: list[Part]) -> tuple[Tensor, Tensor]:
        """Inputs [batch, rows, hidden] after attention, and the same normed, [batch * rows, hidden]."""
        x = x + self.o_proj(self._seen(query, parts))
        return x, (fused_rms_norm if self.fused else rms_norm)(x, self.norm, self.config.norm_eps).flatten(0, 1)


class Head(Layer):
    """A Jakiro head: a mixture of SwiGLU experts, its sum and its contrast."""

    def __init__(self, config: HeadConfig, fused: bool) -> None:
        super().__init__(config, fused)
        c = config
        self.router = nn.Linear(c.hidden, c.experts + 2, bias=False)
        self.gate_up = nn.Parameter(torch.empty(c.experts, 2 * c.inner, c.hidden))
        self.down = nn.Parameter(torch.empty(c.experts, c.hidden, c.inner))

    def features(self, x: Tensor, query: Tensor, parts: list[Part], contrast: bool) -> tuple[Tensor, Tensor]:
        """The next features (primary, contrast), both [batch, rows, hidden], of inputs [batch, rows, hidden]."""
        x, normed = self.attend(x, query, parts)
        left, right = fused_expert_dispatch(
            normed, self.router(normed), self.gate_up, self.down, self.config.experts_per_token, contrast
        )  # [batch * rows, hidden]
        return x + left.view_as(x), x + right.view_as(x)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (torch.cat([each, each], -1)[:, None] for each in (cos, sin))
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [batch, n] of x [batch, rows, width], as [batch, n, width]."""
    return torch.gather(x, 1, rows[:, :, None].expand(-1, -1, x.shape[-1]))


class Phase(nn.Module):
    """What every drafting phase has: a head, the target's embedding [vocab, hidden] and projection [draft_vocab, hidden].

    `token_map` [draft_vocab] says which token a row of the projection stands for; None where that is the row's own number.
    """

    def __init__(self, head: Layer, draft_vocab: int | None) -> None:
        super().__init__()
        self.head = head
        config = head.config
        self.embedding = nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.projection = nn.Parameter(torch.empty(draft_vocab or config.vocab, config.hidden))
        self.token_map: Tensor | None
        self.register_buffer("token_map", torch.zeros(draft_vocab, dtype=torch.int64) if draft_vocab else None)

    def _input(self, tokens: Tensor, features: Tensor) -> Tensor:
        return self.head.fc(torch.cat([nn.functional.embedding(tokens, self.embedding), features], -1))

    def _tokens(self, index: Tensor) -> Tensor:
        return index if self.token_map is None else self.token_map[index]

    def tree(self, last: Tensor, query: Tensor, position: Tensor, parts: list[Part]) -> tuple[Tensor, Tensor, Tensor]:
        """The tree behind the last accepted rows.

        Args:
            last: their inputs [batch, 1, hidden]
            query: theirs, [batch, heads, 1, head_dim]
            position: theirs, [batch, 1]
            parts: what the tree attends to besides itself

        Returns:
            tree_tokens, tree_parents, tree_scores
        """
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        hidden_states: Tensor,
        position_ids: Tensor,
        last_row: Tensor,
        past_length: Tensor,
        past_key: Tensor,
        past_value: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Shapes as in the contract. Returns tree_tokens, tree_parents, tree_scores, new_key, new_value.

        Every accepted row gives its keys; only the last one needs the rest of the layer.
        """
        x = self._input(input_ids, hidden_states)
        query, new_key, new_value = self.head.project(x, position_ids)
        rows = torch.arange(input_ids.shape[1], device=input_ids.device)
        in_rows = (rows[None, :] <= last_row[:, None])[:, None, :]
        parts = [self.head.past(past_key, past_value, past_length), self.head.beside(new_key, new_value, in_rows)]
        last = last_row[:, None]
        query = torch.gather(query, 2, last[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        return (*self.tree(pick(x, last), query, torch.gather(position_ids, 1, last), parts), new_key, new_value)


class DraftGraph(Phase):
    """The drafting phase of a Jakiro head under the graph contract."""

    head: Head

    def __init__(self, head: Head, shape: TreeShape, draft_vocab: int | None) -> None:
        super().__init__(head, draft_vocab)
        self.shape = shape

    @property
    def _chooses(self) -> selection.Selection:
        return selection.FUSED if self.head.one_operator else selection.PRIMITIVE

    def _candidates(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The best `top_k` next tokens after each feature: log-probabilities and tokens, both [batch, rows, top_k]."""
        logits = nn.functional.linear(features.flatten(0, 1), self.projection).float()
        log_probs, index = self._chooses.candidates(logits, self.shape.top_k)
        tokens = self._tokens(index)
        size = (*features.shape[:2], self.shape.top_k)
        return log_probs.view(size), tokens.view(size)

    def tree(self, last: Tensor, query: Tensor, position: Tensor, parts: list[Part]) -> tuple[Tensor, Tensor, Tensor]:
        head, width, device = self.head, self.shape.top_k, last.device
        last_pass = self.shape.depth - 2 if self.shape.parallel else self.shape.depth - 1
        primary, contrast = head.features(last, query, parts, last_pass < 0)
        scores, tokens = self._candidates(primary)
        scores, tokens = scores[:, 0], tokens[:, 0]  # the first beam: [batch, top_k]
        features = primary.expand(-1, width, -1)

        # every candidate so far; a candidate's number is its place in this list
        all_scores, all_tokens, all_parents = [scores], [tokens], [torch.full_like(tokens, -1)]
        beam = torch.arange(width, device=device).expand_as(tokens)  # the beam's candidate numbers
        count = width
        itself = torch.eye(width, dtype=torch.bool, device=device).expand(tokens.shape[0], width, width)
        ancestors = itself  # [batch, top_k, tree rows so far]
        keys: list[Tensor] = []
        values: list[Tensor] = []
        source = torch.zeros_like(tokens)  # for the last round: which row of `contrast` a beam entry continues

        for round_ in range(self.shape.depth):
            if round_ <= last_pass:
                x = self._input(tokens, features)
                position = position + 1
                query, key, value = head.project(x, position.expand(-1, width))
                keys, values = [*keys, key], [*values, value]
                drafted = head.beside(torch.cat(keys, 2), torch.cat(values, 2), ancestors)
                parallel = self.shape.parallel and round_ == last_pass
                features, right = head.features(x, query, [*parts, drafted], parallel)
                if parallel:
                    contrast = right
                log_probs, next_tokens = self._candidates(features)  # [batch, top_k, top_k]
            else:
                log_probs, next_tokens = self._candidates(contrast)
                if self.shape.depth > 1 and self.shape.pairing == "parent":
                    log_probs, next_tokens = pick(log_probs, source), pick(next_tokens, source)
            if next_tokens.shape[1] != width:  # depth 1: one row's candidates for the whole beam
                log_probs, next_tokens = (each.expand(-1, width, -1) for each in (log_probs, next_tokens))
            totals, flat_tokens, parents = self._chooses.propose(scores, log_probs, next_tokens, beam)  # [batch, top_k * top_k]
            all_scores.append(totals)
            all_tokens.append(flat_tokens)
            all_parents.append(parents)
            if round_ < self.shape.depth - 1:
                scores, chosen = totals.topk(width, dim=-1)
                source = torch.div(chosen, width, rounding_mode="floor")
                tokens = torch.gather(flat_tokens, 1, chosen)
                features = pick(features, source)
                beam = chosen + count
                ancestors = torch.cat([pick(ancestors.float(), source) > 0.5, itself], -1)
            count += width * width
        every = (torch.cat(each, 1) for each in (all_scores, all_tokens, all_parents))
        best: tuple[Tensor, Tensor, Tensor] = self._chooses.best_nodes(*every, self.shape.nodes)
        return best


def trace(graph: Phase, opset: int, dtype: torch.dtype) -> Any:
    """The draft phase's ONNX graph, without weight values: initializers carry the parameters' names.

    Returns:
        onnx_ir.Model with the contract's inputs, outputs and axis names
    """
    config = graph.head.config

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    # two tensors, not one twice: the exporter would take past_key for past_value
    past_key, past_value = (empty(2, config.kv_heads, 16, config.head_dim, dtype=dtype) for _ in range(2))
    features = empty(2, 3, config.hidden, dtype=dtype)
    batch, rows, capacity = (torch.export.Dim(name) for name in ("batch", "rows", "capacity"))
    by_row = {0: batch, 1: rows}
    with torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            (empty(2, 3), features, empty(2, 3), empty(2), empty(2), past_key, past_value),
            dynamo=True,
            optimize=False,
            verbose=False,
            custom_translation_table=registry.translations(),
            opset_version=opset,
            dynamic_shapes=(
                *(by_row, by_row, by_row, {0: batch}, {0: batch}),
                *({0: batch, 2: capacity}, {0: batch, 2: capacity}),
            ),
            input_names=[
                *("input_ids", "hidden_states", "position_ids", "last_row"),
                *("past_length", "past_key", "past_value"),
            ],
            output_names=["tree_tokens", "tree_parents", "tree_scores", "new_key", "new_value"],
        )
    assert program is not None
    return program.model
