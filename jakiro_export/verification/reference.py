"""What torch computes: transformers' model as it comes, with none of the exporter's hooks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


@torch.no_grad()
def reference(model: nn.Module, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """transformers' logits and final features for one sequence: [tokens, vocab], [tokens, hidden]."""
    kept: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(  # type: ignore[operator]
        lambda _, inputs: kept.append(inputs[0])
    )
    try:
        logits = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits
    finally:
        hook.remove()
    return logits[0].float().numpy(), kept[0][0].float().numpy()
