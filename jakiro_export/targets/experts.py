"""Mixtures of experts in a traced target: each expert has matrices of its own, which every row goes through.

transformers keeps the experts of a layer in one tensor and picks those that a row needs, by loops and gathers that no graph of
fixed operators has. Here the router's weights, zero for experts that were not picked, decide what each adds: the same sums in the
order of the experts, with the products that a backend has for any matrix, quantised or not. What it costs: all experts are
computed for all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface

from jakiro_export.artifact.weights import Part, Stacked, Stored, Weight
from jakiro_export.checkpoints.target import Target
from jakiro_export.errors import ExportError

EVERY_EXPERT = "jakiro_every_expert"  # the name under which transformers knows it
_TENSORS = ("gate_up_proj", "down_proj")
# what checkpoints call an expert's matrices: gate, up and down
_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


class ExpertTensor(NamedTuple):
    """One expert's share of a tensor that transformers has for all experts of a layer."""

    tensor: str
    expert: int


def split_experts(model: nn.Module) -> dict[str, ExpertTensor]:
    """Give every expert of a model on the meta device parameters of its own, in place.

    Returns:
        what each new parameter is, by its full name
    """
    found: dict[str, ExpertTensor] = {}
    for prefix, module in model.named_modules():
        if not all(isinstance(module._parameters.get(name), nn.Parameter) for name in _TENSORS):
            continue
        if not getattr(module, "has_gate", False) or getattr(module, "has_post_expert_norm", False):
            raise ExportError(f"The target's {type(module).__name__} are experts of a kind that this exporter does not know.")
        for name in [*_TENSORS, *(f"{each}_bias" for each in _TENSORS if f"{each}_bias" in module._parameters)]:
            whole = module._parameters.pop(name)
            assert whole is not None
            for expert in range(whole.shape[0]):
                part = nn.Parameter(torch.empty(whole.shape[1:], dtype=whole.dtype, device="meta"), requires_grad=False)
                module.register_parameter(f"{name}_{expert}", part)
                found[f"{prefix}.{name}_{expert}"] = ExpertTensor(f"{prefix}.{name}", expert)
        module.jakiro_experts = whole.shape[0]  # type: ignore[assignment]
    return found


def expert_weight(target: Target, part: ExpertTensor, dtype: np.dtype) -> Weight:
    """Where a checkpoint has an expert's share: in one tensor for all experts, or in tensors of its own.

    Raises:
        ExportError: it has neither
    """
    whole = target.find(part.tensor)
    if whole is not None:
        return Part(target.store, whole, dtype, part.expert)
    prefix, _, kind = part.tensor.rpartition(".")
    for gate, up, down in _NAMES:
        names = [target.find(f"{prefix}.{part.expert}.{each}.weight") for each in (gate, up, down)]
        if all(names):
            stored = [Stored(target.store, str(name), dtype) for name in names]
            return Stacked((stored[0], stored[1])) if kind == "gate_up_proj" else stored[2]
    raise ExportError(f"The target's checkpoint in {target.path} lacks the tensor {part.tensor}, and expert {part.expert}'s own.")


def _every_expert(module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """transformers' experts interface: rows [rows, hidden], the picked experts and their weights [rows, picked]."""

    def product(x: Tensor, name: str, expert: int) -> Tensor:
        weight, bias = getattr(module, f"{name}_{expert}"), getattr(module, f"{name}_bias_{expert}", None)
        if not module.is_transposed:
            return nn.functional.linear(x, weight, bias)
        return x @ weight if bias is None else x @ weight + bias

    total = torch.zeros_like(hidden_states)
    nothing = torch.zeros((), dtype=hidden_states.dtype)
    for expert in range(int(module.jakiro_experts)):  # type: ignore[arg-type]
        share = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True).to(hidden_states.dtype)
        inner = module._apply_gate(product(hidden_states, "gate_up_proj", expert))  # type: ignore[operator]
        added = product(inner, "down_proj", expert) * share
        total = total + torch.where(share > 0, added, nothing)  # not what overflowed in an expert that was not picked
    return total


ExpertsInterface.register(EVERY_EXPERT, _every_expert)
