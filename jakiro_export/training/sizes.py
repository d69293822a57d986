"""Sizes of a head, taken from its target, and its published config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jakiro_export.errors import UsageError

FAMILIES = ("jakiro", "jakiro3", "eagle", "eagle3")


@dataclass(frozen=True)
class Sizes:
    """The sizes of a trained head.

    inner: width between the matrices of an expert, or of the MLP
    experts: two and a gate, with a second guess; else one MLP
    layers: the target's layers whose inputs it reads; none: the features after the final norm
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    norm_eps: float
    rope_theta: float
    experts: bool = True
    layers: tuple[int, ...] = ()

    @property
    def family(self) -> str:
        return ("jakiro" if self.experts else "eagle") + ("3" if self.layers else "")

    @property
    def states(self) -> int:
        """How many of the target's layers it reads."""
        return len(self.layers)


def family_of(family: str, features: str | None) -> str:
    """The family that `--family` and `--features` name together. Raises UsageError where they contradict."""
    if features == "last" and family.endswith("3"):
        raise UsageError(f"A head of the family {family} reads fused features; leave --features last out, or take --family "
                         f"{family.removesuffix('3')}.")  # fmt: skip
    return f"{family.removesuffix('3')}3" if features == "fused" else family


def sizes_of(
    config: Any, family: str, inner: int | None = None, layers: tuple[int, ...] | None = None, width: float = 1.0
) -> Sizes:
    """The sizes of a head of a family for a target's config.

    Args:
        inner: of an expert or the MLP; None: `width` hidden sizes for an expert, twice that for the MLP, which has as many
            parameters then
        layers: those that a head with fused features reads; None: 2, L/2 and, of L, the published L - 3 for EAGLE-3 and the
            output of the last one for Jakiro-3

    Raises:
        UsageError: the target has not these layers, or the head reads none
    """
    heads, count = config.num_attention_heads, config.num_hidden_layers
    rope = getattr(config, "rope_parameters", None) or {}
    kind = family.removesuffix("3")
    experts, fused = kind == "jakiro", kind != family
    if layers and not fused:
        raise UsageError(f"A head of the family {family} reads the features after the final norm; --feature-layers is for "
                         f"--features fused.")  # fmt: skip
    if fused:
        layers = layers or (2, count // 2, count if experts else count - 3)
        _check_layers(layers, count)
    return Sizes(
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        inner=inner or round(width * config.hidden_size) * (1 if experts else 2),
        norm_eps=getattr(config, "rms_norm_eps", 1e-5),
        rope_theta=float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0),
        experts=experts,
        layers=layers or (),
    )


def _check_layers(layers: tuple[int, ...], count: int) -> None:
    if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > count:
        given = ",".join(map(str, layers))
        raise UsageError(f"The target has {count} layers, and {given} are no ascending numbers of 0 to {count}; give others by "
                         f"--feature-layers.")  # fmt: skip


def published_config(config: Any, sizes: Sizes) -> dict[str, Any]:
    """A head's `config.json` in its family's published format."""
    own: dict[str, Any] = {"architectures": [_ARCHITECTURES[sizes.family]], "model_type": "llama", "hidden_size": sizes.hidden}
    if sizes.experts:
        own["intermediate_size"] = config.intermediate_size
        own.update({"intermediate": sizes.inner} if sizes.inner != sizes.hidden else {})
    else:
        own["intermediate_size"] = sizes.inner
    own |= {
        "num_hidden_layers": 1,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": sizes.norm_eps,
        "rope_theta": sizes.rope_theta,
    }
    if sizes.experts:
        own |= {"num_local_experts": 2, "num_experts_per_tok": 2}
    if sizes.layers:
        own |= {"eagle_aux_hidden_state_layer_ids": list(sizes.layers), "fc_norm": True}
    else:
        own["bias"] = True
    return {**own, "dtype": "float16"}


_ARCHITECTURES = {
    "jakiro": "JakiroHead",
    "jakiro3": "Jakiro3Head",
    "eagle": "LlamaForCausalLM",
    "eagle3": "LlamaForCausalLMEagle3",
}
