"""What torch computes: transformers' model as it comes, with none of the exporter's attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from jakiro_export.targets.features import LayerInputs


@torch.no_grad()
def reference(model: nn.Module, tokens: np.ndarray, layers: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """transformers' logits and features for one sequence: [tokens, vocab], [tokens, width].

    Args:
        layers: whose inputs the features are, side by side; none: what the projection to logits reads
    """
    kept: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(  # type: ignore[operator]
        lambda _, inputs: kept.append(inputs[0])
    )
    inputs = LayerInputs(model, layers)
    try:
        logits = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits
        features = inputs.take() if layers else kept[0]
    finally:
        hook.remove()
        inputs.remove()
    return logits[0].float().numpy(), features[0].float().numpy()
