"""transformers' model of a target on the meta device: tracing it costs no memory, weights are bound by name afterwards."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from jakiro_export.errors import ExportError
from jakiro_export.targets import families
from jakiro_export.targets.experts import EVERY_EXPERT
from jakiro_export.targets.hooks import ATTENTION


def build_meta(config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The target without weights.

    Raises:
        ExportError: transformers has no causal model for this configuration, or its attention cannot be replaced.
    """
    try:
        with torch.device("meta"):
            config = copy.deepcopy(config)  # transformers notes in it what was chosen
            config._experts_implementation = EVERY_EXPERT
            model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=dtype, trust_remote_code=False)
    except (ValueError, KeyError, AttributeError) as error:
        raise ExportError(
            f"The target's architecture {families.architecture(config)} is not one this exporter can trace ({error}); "
            f"{families.LISTED}."
        ) from error
    return model.eval()


def computed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The values of buffers that no checkpoint holds (rotary frequencies), computed on the CPU, by full name.

    Raises:
        ExportError: a buffer that this exporter does not know how to compute.
    """
    values: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        names = [name for name in module._buffers if name in module._non_persistent_buffers_set]
        if not names:
            continue
        real = _with_values(module)
        for name in names:
            value, traced = real._buffers[name], module._buffers[name]
            if value is not None and traced is not None:
                values[f"{prefix}.{name}"] = value.to(traced.dtype)
    return values


def _with_values(module: nn.Module) -> nn.Module:
    """A module on the CPU that has the same computed buffers. Raises ExportError for one that this exporter does not know."""
    kind = type(module)
    if kind.__name__.endswith("RotaryEmbedding"):
        return kind(config=module.config)
    if isinstance(module, nn.Embedding) and hasattr(module, "scalar_embed_scale"):  # Gemma scales its embedding
        return kind(1, 1, 0, embed_scale=module.scalar_embed_scale)  # type: ignore[call-arg]
    raise ExportError(f"The target computes a buffer in {kind.__name__}, which this exporter cannot.")
