"""Trainable head: parameters under their published names, several steps through its own predictions.

The arithmetic of experts is arXiv 2502.06282's, that of fused features EAGLE-3's (arXiv 2503.01840), and so are the steps: at
step s the head continues a chain of s tokens it has drafted, each from the feature it predicted itself; attention sees the
target's features up to where the chain starts and the chain's own rows after that, exactly what it sees in use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jakiro_export.training.sizes import Sizes

_CHUNK = 512  # rows whose logits are held at once


class MLP(nn.Module):
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
        self.experts = nn.ModuleList(MLP(hidden, inner) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Primary and contrast, as x."""
        g = self.gate(x).float()
        first, second = (expert(x) for expert in self.experts)
        w, p = g[..., :2].softmax(-1).to(x.dtype), g[..., 2:].softmax(-1).to(x.dtype)
        sign = torch.where(g[..., 2:3] > g[..., 3:4], 1.0, -1.0).to(x.dtype)
        return w[..., :1] * first + w[..., 1:] * second, sign * (p[..., :1] * first - p[..., 1:] * second)


class Attention(nn.Module):
    def __init__(self, sizes: Sizes, inputs: int) -> None:
        super().__init__()
        width = sizes.kv_heads * sizes.head_dim
        self.q_proj = nn.Linear(inputs, sizes.heads * sizes.head_dim, bias=False)
        self.k_proj = nn.Linear(inputs, width, bias=False)
        self.v_proj = nn.Linear(inputs, width, bias=False)
        self.o_proj = nn.Linear(sizes.heads * sizes.head_dim, sizes.hidden, bias=False)


class Layer(nn.Module):
    """Attention over rows of `inputs` numbers, then two experts (`mlp_moe`) or one MLP (`mlp`)."""

    def __init__(self, sizes: Sizes, inputs: int) -> None:
        super().__init__()
        self.self_attn = Attention(sizes, inputs)
        self.mlp_moe = Mixture(sizes.hidden, sizes.inner) if sizes.experts else None
        self.mlp = None if sizes.experts else MLP(sizes.hidden, sizes.inner)
        self.post_attention_layernorm = nn.RMSNorm(sizes.hidden, sizes.norm_eps)

    def guesses(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is predicted of rows after attention, and the second guess of a head that has one."""
        normed = self.post_attention_layernorm(x)
        if self.mlp is not None:
            return x + self.mlp(normed), None
        assert self.mlp_moe is not None
        primary, contrast = self.mlp_moe(normed)
        return x + primary, x + contrast


class TrainedHead(nn.Module, ABC):
    """A head with its parameters; its `state_dict` has the published names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes

    @property
    @abstractmethod
    def layer(self) -> Layer: ...

    @abstractmethod
    def start(self, features: Tensor) -> Tensor:
        """What the first guess continues, [batch, length, hidden], of what the head reads of the target."""

    @abstractmethod
    def rows(self, embeddings: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The layer's rows after these tokens, [batch, length, hidden]: of what they continue, what attention is made of
        and what it is added to."""

    def scored(self, feature: Tensor) -> Tensor:
        """What the projection reads of a prediction."""
        return feature

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.sizes.head_dim)).transpose(1, 2)

    def _rotations(self, length: int) -> tuple[Tensor, Tensor]:
        powers = torch.arange(0, self.sizes.head_dim, 2).float() / self.sizes.head_dim
        angles = torch.outer(torch.arange(length).float(), self.sizes.rope_theta**-powers)
        return angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def steps(self, embeddings: Tensor, features: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Predictions of steps 0 .. steps - 1.

        Args:
            embeddings: of the token after each feature, [batch, length, hidden]
            features: what the head reads of the target, [batch, length, width]

        Yields:
            (primary, contrast), [batch, length, hidden], as the projection reads them: row p predicts the features p + 1 and
            p + 2; contrast is None for a head without experts. At step s rows before s mean nothing: their chain would start
            before the text does.
        """
        sizes, layer = self.sizes, self.layer
        attn = layer.self_attn
        length, groups, scale = embeddings.shape[1], sizes.heads // sizes.kv_heads, sizes.head_dim**-0.5
        cos, sin = self._rotations(length)
        far = torch.arange(length)
        distance = far[:, None] - far[None, :]
        chain_keys: list[Tensor] = []
        chain_values: list[Tensor] = []
        continued, rows = self.start(features), self.rows(embeddings)
        for step in range(steps):
            read, x = rows(continued)
            q, k = self._split(attn.q_proj(read), sizes.heads), self._split(attn.k_proj(read), sizes.kv_heads)
            v = self._split(attn.v_proj(read), sizes.kv_heads)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
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
            primary, contrast = layer.guesses(x + attn.o_proj(seen.transpose(1, 2).flatten(2)))
            yield self.scored(primary), None if contrast is None else self.scored(contrast)
            continued = _shift(primary.unsqueeze(1), 1).squeeze(1)


class LastFeatureHead(TrainedHead):
    """A head that reads the features after the target's final norm: Jakiro, EAGLE."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.fc = nn.Linear(2 * sizes.hidden, sizes.hidden)
        self.layers = nn.ModuleList([Layer(sizes, sizes.hidden)])
        with torch.no_grad():  # start as a copy of the feature: the next one resembles it
            self.fc.weight[:, sizes.hidden :] += torch.eye(sizes.hidden)
            self.fc.bias.zero_()

    @property
    def layer(self) -> Layer:
        return self.layers[0]  # type: ignore[return-value]

    def start(self, features: Tensor) -> Tensor:
        return features

    def rows(self, embeddings: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        width = embeddings.shape[-1]
        tokens = F.linear(embeddings, self.fc.weight[:, :width], self.fc.bias)  # the same at every step

        def made(continued: Tensor) -> tuple[Tensor, Tensor]:
            x = tokens + F.linear(continued, self.fc.weight[:, width:])
            return x, x

        return made


class FusedLayer(Layer):
    """A layer whose rows are an embedding and what it continues, each normed."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, 2 * sizes.hidden)
        self.input_layernorm, self.hidden_norm = (nn.RMSNorm(sizes.hidden, sizes.norm_eps) for _ in range(2))


class FusedFeatureHead(TrainedHead):
    """A head that reads the inputs of several of the target's layers: Jakiro-3, EAGLE-3. Each is normed before the fc."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        self.fc = nn.Linear(sizes.states * sizes.hidden, sizes.hidden, bias=False)
        self.fc_norm = nn.ModuleList(nn.RMSNorm(sizes.hidden, sizes.norm_eps) for _ in range(sizes.states))
        self.midlayer = FusedLayer(sizes)
        self.norm = nn.RMSNorm(sizes.hidden, sizes.norm_eps)
        with torch.no_grad():  # start as a copy of the last of them
            self.fc.weight.zero_()
            self.fc.weight[:, -sizes.hidden :] = torch.eye(sizes.hidden)

    @property
    def layer(self) -> Layer:
        return self.midlayer

    def fit_scale(self, features: Tensor, states: Tensor) -> None:
        """Let predictions begin as near the target's features as a norm of the last state comes.

        Args:
            features: after the target's final norm, [rows, hidden]
            states: the inputs of the layers that the head reads, [rows, states * hidden]
        """
        with torch.no_grad():
            last = states[:, -self.sizes.hidden :].float()
            normed = last * (last.pow(2).mean(-1, keepdim=True) + self.sizes.norm_eps).rsqrt()
            self.norm.weight.copy_((features.float() * normed).sum(0) / normed.pow(2).sum(0).clamp(min=1e-6))

    def start(self, features: Tensor) -> Tensor:
        parts = features.chunk(len(self.fc_norm), -1)
        started: Tensor = self.fc(torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1))
        return started

    def rows(self, embeddings: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        tokens = self.midlayer.input_layernorm(embeddings)  # the same at every step
        return lambda continued: (torch.cat([tokens, self.midlayer.hidden_norm(continued)], -1), continued)

    def scored(self, feature: Tensor) -> Tensor:
        scored: Tensor = self.norm(feature)
        return scored


def new_head(sizes: Sizes) -> TrainedHead:
    """A head of random numbers."""
    return FusedFeatureHead(sizes) if sizes.layers else LastFeatureHead(sizes)


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
