"""Trainable head: parameters under their published names, several steps through its own predictions.

The arithmetic is arXiv 2502.06282's. The steps follow EAGLE-3 (arXiv 2503.01840): at step s the head continues a chain of s
tokens it has drafted, each from the feature it predicted itself; attention sees the target's features up to where the chain
starts and the chain's own rows after that, exactly what it sees in use.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CHUNK = 512  # rows whose logits are held at once


class Expert(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Mixture(nn.Module):
    """Two experts, and a gate with two outputs for their sum and two for their difference."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, 4, bias=False)
        self.experts = nn.ModuleList(Expert(hidden, inner) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Primary and contrast, as x."""
        g = self.gate(x).float()
        first, second = (expert(x) for expert in self.experts)
        w, p = g[..., :2].softmax(-1).to(x.dtype), g[..., 2:].softmax(-1).to(x.dtype)
        sign = torch.where(g[..., 2:3] > g[..., 3:4], 1.0, -1.0).to(x.dtype)
        return w[..., :1] * first + w[..., 1:] * second, sign * (p[..., :1] * first - p[..., 1:] * second)


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(hidden, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int, kv_heads: int, head_dim: int, inner: int, norm_eps: float) -> None:
        super().__init__()
        self.self_attn = Attention(hidden, heads, kv_heads, head_dim)
        self.mlp_moe = Mixture(hidden, inner)
        self.post_attention_layernorm = nn.RMSNorm(hidden, norm_eps)


class TrainedHead(nn.Module):
    """A head for a target with `hidden` wide features; its `state_dict` is a published checkpoint.

    mixture: False leaves the gate at zero, where both experts count one half for every row: one MLP of twice the inner size, as
        EAGLE-2 (arXiv 2406.16858) has it, in the same format
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        inner: int,
        norm_eps: float,
        rope_theta: float,
        mixture: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.rope_theta, self.inner = heads, kv_heads, head_dim, rope_theta, inner
        self.fc = nn.Linear(2 * hidden, hidden)
        layer = Layer(hidden, heads, kv_heads, head_dim, inner, norm_eps)
        self.layers = nn.ModuleList([layer])
        with torch.no_grad():  # start as a copy of the feature: the next one resembles it
            self.fc.weight[:, hidden:] += torch.eye(hidden)
            self.fc.bias.zero_()
            if not mixture:
                layer.mlp_moe.gate.weight.zero_().requires_grad_(False)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)

    def _rotations(self, length: int) -> tuple[Tensor, Tensor]:
        device = self.fc.weight.device
        powers = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
        angles = torch.outer(torch.arange(length, device=device).float(), self.rope_theta**-powers)
        return angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def steps(self, embeddings: Tensor, features: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Predictions of steps 0 .. steps - 1.

        Args:
            embeddings: of the token after each feature, [batch, length, hidden]
            features: the target's, [batch, length, hidden]

        Yields:
            (primary, contrast), [batch, length, hidden]: row p predicts the features p + 1 and p + 2. At step s rows before s
            mean nothing: their chain would start before the text does.
        """
        layer = self.layers[0]
        assert isinstance(layer, Layer)
        attn = layer.self_attn
        length, groups, scale = embeddings.shape[1], self.heads // self.kv_heads, self.head_dim**-0.5
        cos, sin = self._rotations(length)
        far = torch.arange(length, device=embeddings.device)
        distance = far[:, None] - far[None, :]
        chain_keys: list[Tensor] = []
        chain_values: list[Tensor] = []
        continued, width = features, embeddings.shape[-1]
        tokens = F.linear(embeddings, self.fc.weight[:, :width], self.fc.bias)  # the same at every step
        for step in range(steps):
            x = tokens + F.linear(continued, self.fc.weight[:, width:])
            q, k, v = self._split(attn.q_proj(x), self.heads), self._split(attn.k_proj(x), self.kv_heads), attn.v_proj(x)
            q, k, v = _rotate(q, cos, sin), _rotate(k, cos, sin), self._split(v, self.kv_heads)
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            if step == 0:
                text_key, text_value = k, v
                seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                chain_keys, chain_values = [*chain_keys, k], [*chain_values, v]
                text = (q @ text_key.transpose(2, 3)).float() * scale
                scores = [text.masked_fill(distance < step, -1e9)]
                back = [(_shift(key, step - n), _shift(value, step - n)) for n, (key, value) in
                        enumerate(zip(chain_keys, chain_values, strict=True), 1)]  # fmt: skip
                scores += [(q * key).sum(-1, keepdim=True).float() * scale for key, _ in back]
                weights = torch.cat(scores, -1).softmax(-1).to(v.dtype)
                seen = weights[..., :length] @ text_value
                for n, (_, value) in enumerate(back):
                    seen = seen + weights[..., length + n : length + n + 1] * value
            x = x + attn.o_proj(seen.transpose(1, 2).flatten(2))
            primary, contrast = layer.mlp_moe(layer.post_attention_layernorm(x))
            yield x + primary, x + contrast
            continued = _shift((x + primary).unsqueeze(1), 1).squeeze(1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return (x * cos + torch.cat([-right, left], -1) * sin).to(x.dtype)


def _shift(x: Tensor, rows: int) -> Tensor:
    """x [batch, heads, length, width] moved `rows` later; zeros come in."""
    return F.pad(x, (0, 0, rows, 0))[:, :, : x.shape[2]] if rows else x


class SoftCrossEntropy(torch.autograd.Function):
    """Cross-entropy of `features @ projection.T` against soft targets, summed over the rows, without ever holding all logits.

    The projection is the target's and does not learn, so the gradient of the features is all that backward needs; it is made
    chunk by chunk while the logits are in cache. Smaller chunks multiply at three quarters of the speed.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, features: Tensor, projection: Tensor, bias: Tensor, targets: Tensor
    ) -> Tensor:
        """features [rows, hidden], projection [vocab, hidden], bias [vocab], targets [rows, vocab] summing to 1 -> scalar.

        bias: added to the logits; the logarithm of how many tokens a row of the projection stands for
        """
        total = torch.zeros((), device=features.device)
        gradient = torch.empty_like(features)
        for start in range(0, len(features), _CHUNK):
            rows = slice(start, start + _CHUNK)
            log_probs = (features[rows].to(projection.dtype) @ projection.T).float().add_(bias).log_softmax(-1)
            wanted = targets[rows].float()
            total -= (wanted * log_probs).sum()
            gradient[rows] = (log_probs.exp_().sub_(wanted).to(projection.dtype) @ projection).to(features.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * upstream, None, None, None
