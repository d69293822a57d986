"""Expert dispatch with quantised experts: matmuls of their own, SwiGlu and MixExperts between and after them."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from jakiro_export.artifact.weights import Reshaped, Stacked
from jakiro_export.ops import DOMAIN, expert_dispatch, mix_experts, registry, swiglu
from jakiro_export.passes.editing import drop_unused_initializers, lazy_weight, replace
from jakiro_export.passes.quantize_matmuls import quantized_matmul
from jakiro_export.quantization.layouts.cpu_tiles import OUTPUTS
from jakiro_export.quantization.recipe import Recipe


def quantize_experts(model: ir.Model, recipe: Recipe) -> None:
    """A mixture of two experts, both used for every row, becomes the matmuls of the scheme its matrices have."""
    for node in list(model.graph):
        if node.op_type == expert_dispatch.NAME:
            _quantize(model, node, recipe)
    drop_unused_initializers(model)


def _quantize(model: ir.Model, node: ir.Node, recipe: Recipe) -> None:
    x, router_logits, *matrices = node.inputs
    gate_up, down = (lazy_weight(matrix) for matrix in matrices)
    assert x is not None
    assert router_logits is not None
    assert isinstance(gate_up, Reshaped)
    assert isinstance(down, Reshaped)
    assert isinstance(down.weight, Stacked)
    experts, width, hidden = gate_up.shape
    tiles = 1 if recipe.gpu else OUTPUTS
    if experts != 2 or node.attributes.get_int("top_k") != experts or hidden % tiles or width % (2 * tiles):
        return
    names = [str(matrix.name) for matrix in matrices if matrix is not None]
    together = Reshaped(gate_up.weight, (experts * width, hidden))  # one matmul for the gates and ups of all experts
    schemes = [recipe.scheme(name, shape) for name, shape in zip(names, (together.shape, down.shape[1:]), strict=True)]
    if schemes[0] is None or schemes[1] is None:
        return
    into, out_of = schemes[0], schemes[1]
    nodes: list[ir.Node] = []

    def add(made: ir.Node | list[ir.Node]) -> list[ir.Value]:
        nodes.extend(made if isinstance(made, list) else [made])
        return list(nodes[-1].outputs)

    def apply(name: str, inputs: list[ir.Value]) -> list[ir.Value]:
        """An operator of ours, or for a GPU, which has none, what it consists of."""
        if not recipe.gpu:
            return add(ir.node(name, inputs, domain=DOMAIN, num_outputs=len(registry.operators()[name].outputs)))
        body, outputs = registry.standard_nodes(name, inputs)
        nodes.extend(body)
        return outputs

    (both,) = add(quantized_matmul(model, into, x, together, names[0]))
    split: dict[str, Any] = {"axis": -1, "num_outputs": experts}
    inner = add(ir.node("Split", [both], attributes=split, num_outputs=experts))
    results: list[ir.Value] = []
    for expert, weight in enumerate(down.weight.parts):
        (gated,) = apply(swiglu.NAME, [inner[expert]])
        results += add(quantized_matmul(model, out_of, gated, weight, f"{names[1]}.{expert}"))
    made = apply(mix_experts.NAME, [router_logits, *results])
    model.graph.insert_before(node, nodes)
    for output, new in zip(node.outputs, made, strict=True):
        replace(output, new)
    model.graph.remove(node, safe=True)
