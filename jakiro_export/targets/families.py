"""What a target's architecture needs, as tables: a model family that works out of the box is one row, one that cannot a reason.

Nothing of a model is written here: its code is transformers' own. A row says that exports of the architecture were compared with
it; any other causal model is tried, and refused where a table below or the tracing says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jakiro_export.errors import ExportError, UsageError
from jakiro_export.ops.rotary import check_rotary

# Architectures (config.json: "architectures") that are tested, and models of them
KNOWN_TO_WORK = {
    "LlamaForCausalLM": "Llama 2 and 3, Vicuna, SmolLM2",
    "MistralForCausalLM": "Mistral 7B, with its sliding window",
    "Ministral3ForCausalLM": "Ministral 3",
    "Qwen2ForCausalLM": "Qwen 2 and 2.5",
    "Qwen3ForCausalLM": "Qwen 3, dense",
    "GemmaForCausalLM": "Gemma",
    "Gemma2ForCausalLM": "Gemma 2",
    "Gemma3ForCausalLM": "Gemma 3, text only (270M, 1B)",
    "Phi3ForCausalLM": "Phi-3 (4k) and Phi-4; not Phi-3 128k and Phi-4-mini, whose rotary scaling is longrope",
    "PhiForCausalLM": "Phi-1.5 and Phi-2",
    "SmolLM3ForCausalLM": "SmolLM3",
    "Olmo2ForCausalLM": "OLMo 2",
    "Olmo3ForCausalLM": "OLMo 3",
    "GraniteForCausalLM": "Granite, dense",
    "StableLmForCausalLM": "StableLM",
    "CohereForCausalLM": "Command R",
    "Cohere2ForCausalLM": "Command R7B",
    "Exaone4ForCausalLM": "EXAONE 4",
    "GlmForCausalLM": "GLM-4 9B of 2024",
    "Glm4ForCausalLM": "GLM-4 of 2025, dense",
    "Starcoder2ForCausalLM": "StarCoder2",
    "NemotronForCausalLM": "Nemotron, Minitron",
    "OlmoForCausalLM": "OLMo",
    "MixtralForCausalLM": "Mixtral; all experts are computed for all rows",
    "Qwen2MoeForCausalLM": "Qwen 1.5 and 2, mixtures of experts",
    "Qwen3MoeForCausalLM": "Qwen 3, mixtures of experts",
    "OlmoeForCausalLM": "OLMoE",
    "GptOssForCausalLM": "GPT-OSS, from unquantised weights",
    "ArceeForCausalLM": "Arcee AFM",
    "SeedOssForCausalLM": "Seed-OSS",
    "Ernie4_5ForCausalLM": "ERNIE 4.5, dense",
}
# Layer types (config.json: "layer_types"): attention sees a window of the past only, or the chunk it is in
WINDOWED, CHUNKED = "sliding_attention", "chunked_attention"
WITH_SINKS = frozenset({"gpt_oss"})  # models (config.json: "model_type") whose heads have a sink in their softmax
_SIZES = (
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size", "max_position_embeddings",
)  # fmt: skip
# Mixtures of experts (config.json: "model_type") whose experts and router are traced; see `experts`
MIXTURES = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"})
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_OWN_POSITIONS = "it adds learned positions or biases to what it attends to"
_OWN_CACHE = "layers keep a state that is no key/value cache"
# Models that cannot be traced, and why
REFUSED_MODELS = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gpt_bigcode", "opt", "openai-gpt", "xglm", "biogpt", "bloom", "mpt"), _OWN_POSITIONS),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "qwen3_next", "lfm2", "lfm2_moe"), _OWN_CACHE),
    **dict.fromkeys(("jamba", "bamba", "zamba", "zamba2", "falcon_h1", "granitemoehybrid", "minimax", "nemotron_h"), _OWN_CACHE),
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "kimi_k2", "longcat_flash", "glm_moe_dsa"), "latent attention caches other tensors"
    ),
    **dict.fromkeys(
        ("bert", "roberta", "electra", "ernie", "camembert", "bert-generation"), "it is an encoder, which reads a text at once"
    ),
}


LISTED = "docs/supported-models.md lists what works"


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


def windows(config: Any, context: int | None) -> dict[int, int]:
    """How many positions each layer sees, itself included, by layer; those that see all `context` positions are left out."""
    window = getattr(config, "sliding_window", None)
    if not window or (context is not None and window >= context):
        return {}
    kinds = getattr(config, "layer_types", None) or [WINDOWED] * config.num_hidden_layers
    return {layer: int(window) for layer, kind in enumerate(kinds) if kind == WINDOWED}


def has_plain_attention(config: Any, context: int) -> bool:
    """Whether attention is nothing but a softmax over all positions: the fused operator knows no other."""
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return not (windows(config, context) or capped or config.model_type in WITH_SINKS)


def context_limit(config: Any, max_context: int | None) -> int:
    """The most positions an engine serves: what the target was made for, or less if asked.

    Raises:
        UsageError: more was asked for
    """
    limit = int(config.max_position_embeddings)
    if CHUNKED in (getattr(config, "layer_types", None) or ()):
        limit = min(limit, int(config.attention_chunk_size))
    if max_context is not None and max_context > limit:
        raise UsageError(f"--max-context {max_context} is more than the {limit} positions this target can attend to.")
    return max_context or limit


def check(config: Any) -> None:
    """Refuse, before any work, a target that this exporter cannot trace.

    Raises:
        ExportError: what it is and why
    """
    kind, name, works = config.model_type, architecture(config), LISTED
    if hasattr(config, "text_config") or hasattr(config, "thinker_config"):
        raise ExportError(
            f"The target is a {name}, which reads more than text; give a checkpoint of its text model alone ({works})."
        )
    if kind in REFUSED_MODELS:
        raise ExportError(f"The target is a {name}: {REFUSED_MODELS[kind]}, which this exporter does not support; {works}.")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ExportError(f"The target is a {name}, of which transformers has no causal language model; {works}.")
    experts = next((getattr(config, each) for each in _EXPERTS if isinstance(getattr(config, each, None), int)), 1)
    if experts > 1 and kind not in MIXTURES:
        raise ExportError(
            f"The target is a {name} with {experts} experts a layer, of a kind that this exporter does not take; {works}."
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", WINDOWED, CHUNKED}
    if kinds:
        raise ExportError(f"The target is a {name} with layers of type {min(kinds)}, which keep no keys and values; {works}.")
    missing = [field for field in _SIZES if not isinstance(getattr(config, field, None), int)]
    if missing:
        raise ExportError(f"The target's configuration ({name}) has no {missing[0]}, which this exporter needs; {works}.")
    check_rotary(config, "target")
