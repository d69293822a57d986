"""transformers' model of a target on the meta device: tracing it costs no memory, weights are bound by name afterwards."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from jakiro_export.errors import ExportError
from jakiro_export.targets import families
from jakiro_export.targets.hooks import ATTENTION


def build_meta(config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """The target without weights.

    Raises:
        ExportError: transformers has no causal model for this configuration, or its attention cannot be replaced.
    """
    try:
        with torch.device("meta"):
            # a copy: transformers notes the attention in the configuration it is given
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation=ATTENTION, dtype=dtype, trust_remote_code=False
            )
    except (ValueError, KeyError, AttributeError) as error:
        raise ExportError(
            f"The target's architecture {families.architecture(config)} is not one this exporter can trace ({error}); "
            f"known to work: {', '.join(families.KNOWN_TO_WORK)}."
        ) from error
    return model.eval()


def computed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The values of buffers that no checkpoint holds (rotary frequencies), computed on the CPU, by full name.

    Raises:
        ExportError: a buffer that this exporter does not know how to compute.
    """
    values = {}
    for prefix, module in model.named_modules():
        names = [name for name in module._buffers if name in module._non_persistent_buffers_set]
        if not names:
            continue
        if not type(module).__name__.endswith("RotaryEmbedding"):
            raise ExportError(f"The target computes a buffer in {type(module).__name__}, which this exporter cannot.")
        real = type(module)(config=module.config)
        families.check_rotary(getattr(module, "rope_type", "default"))
        values.update({f"{prefix}.{name}": real._buffers[name] for name in names if real._buffers[name] is not None})
    return values
