"""Sizes of a head, taken from its target, and its published config.json."""

from __future__ import annotations

from typing import Any


def shape_of(config: Any, inner: int | None) -> dict[str, Any]:
    """The arguments of a `TrainedHead` for a target's config.

    inner: of an expert; the target's hidden size if not given
    """
    heads = config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        "hidden": config.hidden_size,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "inner": inner or config.hidden_size,
        "norm_eps": getattr(config, "rms_norm_eps", 1e-5),
        "rope_theta": float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0),
    }


def published_config(config: Any, shape: dict[str, Any]) -> dict[str, Any]:
    """A published head's `config.json`."""
    return {
        "architectures": ["JakiroHead"],
        "model_type": "llama",
        "hidden_size": shape["hidden"],
        "intermediate_size": config.intermediate_size,
        **({"intermediate": shape["inner"]} if shape["inner"] != shape["hidden"] else {}),
        "num_hidden_layers": 1,
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "max_position_embeddings": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": shape["norm_eps"],
        "rope_theta": shape["rope_theta"],
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
        "bias": True,
        "dtype": "float16",
    }
