"""The bytes and operations of one call of a graph, either counted in the graph itself or worked out from a model's sizes.

Counted are the products with weights: they are nearly all of it. A weight that a call uses several times (the draft phase runs
the head once a level) counts each time, because it does not fit in any cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from jakiro_export.tensorrt.graphs import Graph, weight_bits

_PASS_ON = ("Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "DequantizeLinear")
_PRODUCTS = ("MatMul", "Gemm", "ExpertDispatch")


@dataclass(frozen=True)
class CostModel:
    """One call, and what is kept.

    stored: bytes of all weights; read: bytes of weights that a call reads; row_operations: multiplications and additions for
    each row; products: how many products with weights; kv_bytes_per_token: bytes of cache for one position of one sequence
    """

    stored: int
    read: int
    row_operations: int
    products: int
    kv_bytes_per_token: int


@dataclass(frozen=True)
class Sizes:
    """A Llama-like target and its Jakiro head in half precision, both projections and the head's two experts included.

    `inner` is the head's expert size; `depth` counts the draft phase's expansions, as --depth does.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    inner: int
    head_kv_heads: int
    tied: bool = False
    experts: int = 2
    element: int = 2

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def _attention(self, kv_heads: int) -> int:
        return 2 * self.hidden * self.hidden + 2 * self.hidden * kv_heads * self.head_dim

    def target(self) -> CostModel:
        """One call of target.onnx."""
        layer = self._attention(self.kv_heads) + 3 * self.hidden * self.intermediate
        projection = self.vocab * self.hidden
        used = self.layers * layer + projection
        stored = used + (0 if self.tied else projection)
        slot = 2 * self.layers * self.kv_heads * self.head_dim * self.element
        return CostModel(stored * self.element, used * self.element, 2 * used, 4 * self.layers + 1, slot)

    def draft(self, depth: int) -> CostModel:
        """One call of draft.onnx: the head over the accepted rows, then once a level, and the last level's projection."""
        head = 2 * self.hidden * self.hidden + self._attention(self.head_kv_heads)
        head += self.experts * 3 * self.hidden * self.inner + (self.experts + 2) * self.hidden
        projection = self.vocab * self.hidden
        used = depth * head + (depth + 1) * projection
        stored = head + (1 if self.tied else 2) * projection
        slot = 2 * self.head_kv_heads * self.head_dim * self.element
        return CostModel(stored * self.element, used * self.element, 2 * used, 7 * depth + 2, slot)


SIZES: dict[str, Sizes] = {
    "smollm2-135m": Sizes(576, 1536, 30, 9, 3, 49152, 576, 3, tied=True),
    "llama2-7b": Sizes(4096, 11008, 32, 32, 32, 32000, 4096, 32),
    "vicuna-7b": Sizes(4096, 11008, 32, 32, 32, 32000, 4096, 32),
    "llama3-8b": Sizes(4096, 14336, 32, 32, 8, 128256, 4096, 8),
    "llama2-13b": Sizes(5120, 13824, 40, 40, 40, 32000, 5120, 40),
    "vicuna-13b": Sizes(5120, 13824, 40, 40, 40, 32000, 5120, 40),
}


def of_graph(graph: Graph) -> CostModel:
    """Counts one call of a graph."""
    weights = {weight.name: weight for weight in graph.model.graph.initializer}
    makers = {output: node for node in graph.model.graph.node for output in node.output}
    read = operations = products = 0
    for node in graph.model.graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        found = 0
        for name in node.input:
            while name in makers and makers[name].op_type in _PASS_ON:
                name = makers[name].input[0]
            if name in weights and len(weights[name].dims) >= 2:
                count = prod(weights[name].dims)
                read += count * weight_bits(weights[name]) // 8
                operations += 2 * count
                found += 1
        products += found
    ones = dict.fromkeys(graph.axes, 1)
    slot = sum(tensor.bytes(ones) for tensor in graph.inputs if tensor.name.startswith(("past_key", "past_value")))
    return CostModel(graph.weight_bytes, read, operations, products, slot)
