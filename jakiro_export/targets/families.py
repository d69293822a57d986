"""What a target's architecture needs, as tables: a model family that works out of the box is one row, one that cannot a reason.

Nothing of a model is written here: its code is transformers' own. A row says that exports of the architecture were compared with
it; any other causal model is tried, and refused where a table below or the tracing says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jakiro_export.errors import ExportError, UsageError

# Architectures (config.json: "architectures") that are tested, and models of them
KNOWN_TO_WORK = {
    "LlamaForCausalLM": "Llama 2 and 3, Vicuna, SmolLM2",
    "MistralForCausalLM": "Mistral 7B",
    "Qwen2ForCausalLM": "Qwen 2 and 2.5",
    "Qwen3ForCausalLM": "Qwen 3, dense",
}
# Rotary embeddings (config.json: "rope_type") that a graph cannot hold, and why
REFUSED_ROTARY = dict.fromkeys(("dynamic", "longrope"), "depends on the length at run time, which a graph cannot follow")
# Layer types (config.json: "layer_types") whose attention sees a window of the past only
WINDOWED = ("sliding_attention",)


class TargetSizes(NamedTuple):
    """The sizes of a target that its graph contract asks for, in the order of `contract.target`."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int


def sizes(config: Any) -> TargetSizes:
    """Read from a transformers configuration."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return TargetSizes(config.num_hidden_layers, config.num_key_value_heads, head_dim, config.hidden_size, config.vocab_size)


def architecture(config: Any) -> str:
    """The model class that a configuration names; or, where it names none (GGUF), transformers' own for its model type."""
    names = getattr(config, "architectures", None)
    return str(names[0] if names else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type))


def context_limit(config: Any, max_context: int | None) -> int:
    """The most positions an engine serves: what the target was made for, its sliding window, or less if asked.

    Raises:
        UsageError: more was asked for
    """
    limit, layers = int(config.max_position_embeddings), getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if window and (layers is None or any(each in WINDOWED for each in layers)):
        limit = min(limit, int(window))
    if max_context is not None and max_context > limit:
        raise UsageError(f"--max-context {max_context} is more than the {limit} positions this target can attend to.")
    return max_context or limit


def check_rotary(kind: str) -> None:
    """Raise ExportError for a rotary embedding that a graph cannot hold."""
    if kind in REFUSED_ROTARY:
        raise ExportError(f"Rotary scaling {kind!r} {REFUSED_ROTARY[kind]}.")
