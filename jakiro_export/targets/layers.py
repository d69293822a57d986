"""A traced graph of two decoder layers becomes one of many.

Tracing and simplifying take time for every layer, and all layers of the usual targets are the same but for their weights. So two
are traced, and the second one's nodes are copied for each further layer. Where layers differ (sliding windows in some, experts
in others), all are traced.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
from torch import nn

from jakiro_export.errors import ExportError
from jakiro_runtime.contract import AUXILIARY

TRACED = 2
_SCOPES = "pkg.torch.onnx.name_scopes"


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The decoder layers of a causal model and their name in it; None where they cannot be found."""
    count = model.config.num_hidden_layers  # type: ignore[union-attr]
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    return found[0] if len(found) == 1 else None


def are_alike(layers: nn.ModuleList) -> bool:
    """Whether the layers differ in nothing but their weights and their numbers."""
    return len({repr(list(_description(layer))) for layer in layers}) == 1


def _description(layer: nn.Module) -> Iterator[tuple[str, str, Any]]:
    for name, module in layer.named_modules():
        settings = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str | bool | None)}
        settings.pop("layer_idx", None)
        shapes = {key: tuple(tensor.shape) for key, tensor in module.named_parameters(recurse=False)}
        yield name, type(module).__qualname__, (sorted(settings.items(), key=str), shapes)


def shortened(config: Any) -> Any:
    """The same model with the layers that are traced."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = TRACED
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:TRACED]
    return config


def repeat_last_layer(model: ir.Model, layers: str, count: int, read: Sequence[int] = ()) -> None:
    """Make `count` layers of the two that `model` holds, in place.

    Args:
        layers: the name of the layer list in the graph, such as "model.model.layers"
        read: the layers whose inputs become the features, in the place of layer 0's, which the traced graph gives

    Raises:
        ExportError: the graph's layers hang together in another way than by one stream of activations.
    """
    streams = _Repeater(model, layers).run(count)
    if read:
        _join_features(model, streams, read)


def _join_features(model: ir.Model, streams: list[ir.Value | None], read: Sequence[int]) -> None:
    """Replace the output that is the input of layer 0 by the inputs of the layers `read`, side by side.

    Args:
        streams: the input of each layer, and the last one's output; None for layer 0
    """
    outputs = model.graph.outputs
    place = next(n for n, value in enumerate(outputs) if value.name == AUXILIARY)
    first = outputs[place]
    parts = [streams[number] or first for number in read]
    producers = {value.producer() for value in parts}
    last = [node for node in model.graph if node in producers][-1]
    assert first.shape is not None
    joined = ir.Node("", "Concat", parts, [ir.AttrInt64("axis", -1)], outputs=[ir.Value(name=AUXILIARY, type=first.type)])
    width = int(first.shape[-1]) * len(read)  # type: ignore[arg-type]
    joined.outputs[0].shape = ir.Shape([*first.shape[:-1], width])
    first.name = "layer_0_input"
    outputs[place] = joined.outputs[0]
    model.graph.insert_after(last, [joined])


class _Repeater:
    def __init__(self, model: ir.Model, layers: str) -> None:
        self.graph, self.layers, last = model.graph, layers, TRACED - 1
        pattern = re.compile(re.escape(layers) + r"(?:\.slice\([^)]*\))?\.(\d+)")
        owner: dict[ir.Node, int] = {}
        for node in self.graph:
            for scope in re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, "")):
                match = pattern.fullmatch(scope)
                if match:
                    owner[node] = int(match[1])
        self.nodes = [node for node in self.graph if owner.get(node) == last]
        self.inside = set(self.nodes)
        self.inputs: dict[str, ir.Value] = {}  # of the layers that are made
        weighted = self._weighted()
        entering = {
            value
            for node in self.nodes
            for value in node.inputs
            if value is not None and value in weighted and not value.is_initializer() and value.producer() not in self.inside
        }
        leaving = {
            value
            for node in self.nodes
            for value in node.outputs
            if value in weighted and not value.is_graph_output() and any(use.node not in self.inside for use in value.uses())
        }
        if len(entering) != 1 or len(leaving) != 1:
            raise ExportError(
                f"Layer {last} of the target reads {len(entering)} streams and writes {len(leaving)}, expected one."
            )
        self.entering, self.leaving = entering.pop(), leaving.pop()

    def _weighted(self) -> set[ir.Value | None]:
        """What depends on the weights of any layer."""
        found: set[ir.Value | None] = {
            value for name, value in self.graph.initializers.items() if name.startswith(f"{self.layers}.")
        }
        for node in self.graph:
            if any(value in found for value in node.inputs):
                found.update(node.outputs)
        return found

    def run(self, count: int) -> list[ir.Value | None]:
        """Make the layers. Returns the input of each, and the last one's output; None for layer 0."""
        stream, place, last = self.leaving, self.nodes[-1], TRACED - 1
        streams: list[ir.Value | None] = [None, self.entering, self.leaving]
        outside = [use for use in self.leaving.uses() if use.node not in self.inside]
        made: dict[str, ir.Value] = {}
        for number in range(TRACED, count):
            mapped = self._layer_values(last, number)
            mapped[self.entering] = stream
            copies = [self._copy(node, mapped, number) for node in self.nodes]
            self.graph.insert_after(place, copies)
            stream, place = mapped[self.leaving], copies[-1]
            streams.append(stream)
            made.update({str(new.name): new for old, new in mapped.items() if old.is_graph_output()})
        for use in outside:
            use.node.replace_input_with(use.idx, stream)
        self._order(self.graph.inputs, self.inputs, count)
        self._order(self.graph.outputs, made, count)
        return streams

    def _layer_values(self, last: int, number: int) -> dict[ir.Value, ir.Value]:
        """The further layer's inputs and weights, by the last traced layer's."""
        mapped = {}
        for value in self.graph.inputs:
            stem, _, tail = str(value.name).rpartition(".")
            if tail == str(last) and any(use.node in self.inside for use in value.uses()):
                mapped[value] = self.inputs[f"{stem}.{number}"] = _like(value, f"{stem}.{number}")
        prefix = f"{self.layers}.{last}."
        for name, value in list(self.graph.initializers.items()):
            if name.startswith(prefix):
                mapped[value] = _like(value, f"{self.layers}.{number}.{name.removeprefix(prefix)}")
                self.graph.initializers[str(mapped[value].name)] = mapped[value]
        return mapped

    def _copy(self, node: ir.Node, mapped: dict[ir.Value, ir.Value], number: int) -> ir.Node:
        outputs = []
        for value in node.outputs:
            stem, _, tail = str(value.name).rpartition(".")
            is_output = value.is_graph_output()
            mapped[value] = _like(value, f"{stem}.{number}" if is_output and tail.isdigit() else f"{value.name}_{number}")
            outputs.append(mapped[value])
        return ir.Node(
            node.domain,
            node.op_type,
            [mapped.get(value, value) if value is not None else None for value in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            outputs=outputs,
            version=node.version,
            name=f"{node.name}_{number}",
        )

    @staticmethod
    def _order(values: Any, new: dict[str, ir.Value], count: int) -> None:
        """Put the further layers' values after those of the traced ones."""
        ordered = []
        for value in list(values):
            ordered.append(value)
            stem, _, tail = str(value.name).rpartition(".")
            if tail == str(TRACED - 1) and f"{stem}.{TRACED}" in new:
                ordered += [new[f"{stem}.{number}"] for number in range(TRACED, count)]
        del values[:]
        values.extend(ordered)


def _like(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, shape=value.shape, type=value.type)
