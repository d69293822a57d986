"""Features that are the inputs of several layers, side by side: what EAGLE-3 heads and their kin read of a target.

The input of layer n is the residual stream before its norm; layer 0 reads the embedding, and the layer after the last one stands
for the last one's output, before the final norm. transformers numbers its `hidden_states` the same way, but for the last of them,
which it gives after the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jakiro_export.errors import ExportError
from jakiro_export.targets.layers import layer_list


class LayerInputs:
    """The inputs of some layers of a model, caught while it runs.

    Raises:
        ExportError: the model has no list of layers, or not so many
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        self.layers, self._caught = tuple(layers), dict[int, Tensor]()
        self._hooks: list[Any] = []
        if not self.layers:
            return
        found = layer_list(model)
        if found is None:
            raise ExportError("The head reads several of the target's layers, and this target's code has no list of them.")
        modules = found[1]
        if max(self.layers) > len(modules):
            raise ExportError(f"The head reads layer {max(self.layers)} of a target that has {len(modules)}.")
        for number in self.layers:
            if number < len(modules):
                self._hooks.append(modules[number].register_forward_pre_hook(self._input_of(number), with_kwargs=True))
            else:
                self._hooks.append(modules[-1].register_forward_hook(self._output_of(number)))

    def _input_of(self, number: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._caught[number] = inputs[0] if inputs else named["hidden_states"]

        return hook

    def _output_of(self, number: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._caught[number] = output[0] if isinstance(output, tuple) else output

        return hook

    def take(self) -> Tensor:
        """What the last run's layers read, [batch, rows, layers * hidden]."""
        return torch.cat([self._caught.pop(number) for number in self.layers], -1)

    def remove(self) -> None:
        """Let the model run without being watched again."""
        for hook in self._hooks:
            hook.remove()
