"""The bytes and operations of one call of a graph, either counted in the graph itself or worked out from a model's sizes.

Counted are the products with weights: they are nearly all of it. A weight that a call uses several times (the draft phase runs
the head once a level) counts each time, because it does not fit in any cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import onnx

from jakiro_export.ops import DEQUANTIZE_FP4
from jakiro_export.tensorrt.graphs import Graph, weight_bits

_PASS_ON = ("Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "DequantizeLinear", DEQUANTIZE_FP4)
# These join the kernels of others, or are none
_FUSED = frozenset(
    [
        "Constant",
        "Cast",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Shape",
        "DequantizeLinear",
        "QuantizeLinear",
        "Identity",
        "Abs",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Where",
        "Exp",
        "Log",
        "Sigmoid",
        "Max",
        "Neg",
        "Sqrt",
        "Equal",
        "Greater",
        "Less",
        "LessOrEqual",
        "And",
        "Expand",
    ]
) | {DEQUANTIZE_FP4}
_LAUNCHES = {"TopK": 3, "ExpertDispatch": 3}
_PRODUCTS = ("MatMul", "Gemm", "ExpertDispatch")


@dataclass(frozen=True)
class CostModel:
    """One call, and what is kept.

    stored: bytes of all weights; read: bytes of weights that a call reads; row_operations: multiplications and additions for
    each row; products: how many products with weights; kv_bytes_per_token: bytes of cache for one position of one sequence
    score_bytes, score_operations: what attention moves and multiplies for each row and each position before it, the scores being
    written and read again by every operator between the two products; launches: kernels of one call
    """

    stored: int
    read: int
    row_operations: int
    products: int
    kv_bytes_per_token: int
    score_bytes: int = 0
    score_operations: int = 0
    launches: int = 0


class WeightBytes(NamedTuple):
    """Bytes of a weight by where it is, scales included: in layers, the projection to logits, the head, the head's projection."""

    layers: float
    logits: float
    head: float
    draft_logits: float


# As the recipes of these precisions have it; groups of 128 with a scale in half precision, blocks of 16 with one in fp8
_INT4, _FP4 = 0.5 + 2 / 128, 0.5 + 1 / 16
WEIGHTS: dict[str, WeightBytes] = {
    "fp16": WeightBytes(2, 2, 2, 2),
    "bf16": WeightBytes(2, 2, 2, 2),
    "w4a16": WeightBytes(_INT4, 1, _INT4, _INT4),
    "w8a8": WeightBytes(1, 1, 1, 1),
    "fp8": WeightBytes(1, 1, 1, 1),
    "nvfp4": WeightBytes(_FP4, 1, _FP4, _FP4),
}
# Scores of ours go through memory: product, concatenation, softmax, split, product; a fused kernel keeps them to itself
SCORE_PASSES = 7
# Kernels that go with each product; and those of one level's selection: log-sum-exp, top-k, gathers, the tree's masks. With the
# fused operator for candidates the first two are one
KERNELS, SELECTION, FUSED_SELECTION = 3, 24, 18


@dataclass(frozen=True)
class Sizes:
    """A Llama-like target and its Jakiro head, both projections and the head's two experts included.

    `inner` is the head's expert size; `depth` counts the draft phase's expansions, as --depth does. element: bytes of activations
    and of unquantised weights; weights: bytes of a weight where they differ from that
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
    weights: WeightBytes | None = None
    draft_vocab: int | None = None

    def at(self, precision: str, draft_vocab: int | None = None) -> Sizes:
        """The same in another precision, its head proposing `draft_vocab` tokens, None for all."""
        return replace(self, weights=WEIGHTS[precision], draft_vocab=draft_vocab)

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def _bytes(self) -> WeightBytes:
        return self.weights or WeightBytes(*[self.element] * 4)

    def _attention(self, kv_heads: int) -> int:
        return 2 * self.hidden * self.hidden + 2 * self.hidden * kv_heads * self.head_dim

    def _scores(self, layers: int) -> tuple[int, int]:
        """Bytes and operations of attention for each row and each position before it."""
        return layers * self.heads * self.element * SCORE_PASSES, layers * self.heads * self.head_dim * 4

    def target(self) -> CostModel:
        """One call of target.onnx."""
        layer = self._attention(self.kv_heads) + 3 * self.hidden * self.intermediate
        projection, size = self.vocab * self.hidden, self._bytes
        used = self.layers * layer + projection
        read = int(self.layers * layer * size.layers + projection * size.logits)
        shared = self.tied and size.logits == self.element  # a quantised projection is a matrix of its own
        stored = read + (0 if shared else projection * self.element)
        slot = 2 * self.layers * self.kv_heads * self.head_dim * self.element
        products = 4 * self.layers + 1
        return CostModel(stored, read, 2 * used, products, slot, *self._scores(self.layers), KERNELS * products)

    def draft(self, depth: int, fused: bool = False) -> CostModel:
        """One call of draft.onnx: the head over the accepted rows, then once a level, and the last level's projection.

        fused: candidates by one operator
        """
        head = 2 * self.hidden * self.hidden + self._attention(self.head_kv_heads)
        head += self.experts * 3 * self.hidden * self.inner + (self.experts + 2) * self.hidden
        projection, size = min(self.draft_vocab or self.vocab, self.vocab) * self.hidden, self._bytes
        used = depth * head + (depth + 1) * projection
        read = int(depth * head * size.head + (depth + 1) * projection * size.draft_logits)
        shared = self.tied and size.draft_logits == self.element and projection == self.vocab * self.hidden
        embedding = self.vocab * self.hidden * self.element
        stored = int(head * size.head + projection * size.draft_logits) + (0 if shared else embedding)
        slot = 2 * self.head_kv_heads * self.head_dim * self.element
        products, levels = 7 * depth + 2, depth + 1
        launches = KERNELS * products + levels * (FUSED_SELECTION if fused else SELECTION)
        moved, multiplied = self._scores(depth)  # a layer of the head, once a level
        return CostModel(stored, read, 2 * used, products, slot, moved, multiplied, launches)


SIZES: dict[str, Sizes] = {
    "smollm2-135m": Sizes(576, 1536, 30, 9, 3, 49152, 576, 3, tied=True),
    "llama2-7b": Sizes(4096, 11008, 32, 32, 32, 32000, 4096, 32),
    "vicuna-7b": Sizes(4096, 11008, 32, 32, 32, 32000, 4096, 32),
    "llama3-8b": Sizes(4096, 14336, 32, 32, 8, 128256, 4096, 8),
    "llama3.1-8b": Sizes(4096, 14336, 32, 32, 8, 128256, 4096, 8),
    "qwen3-8b": Sizes(4096, 12288, 36, 32, 8, 151936, 4096, 8),
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
            scales = 0
            while name in makers and makers[name].op_type in _PASS_ON:
                maker, packed = makers[name], makers[name].op_type == DEQUANTIZE_FP4
                others = maker.input[:1] if packed else maker.input[1:]
                scales += sum(_size(weights, makers, each) for each in others)
                name = maker.input[1 if packed else 0]
            if name in weights and len(weights[name].dims) >= 2:
                count = prod(weights[name].dims)
                read += count * weight_bits(weights[name]) // 8 + scales
                operations += 2 * count * (2 if weights[name].data_type == onnx.TensorProto.UINT8 else 1)  # two values a byte
                found += 1
        products += found
    ones = dict.fromkeys(graph.axes, 1)
    slot = sum(tensor.bytes(ones) for tensor in graph.inputs if tensor.name.startswith(("past_key", "past_value")))
    launches = sum(_LAUNCHES.get(node.op_type, 1) for node in graph.model.graph.node if node.op_type not in _FUSED)
    return CostModel(graph.weight_bytes, read, operations, products, slot, launches=launches)


def _size(weights: Mapping[str, onnx.TensorProto], makers: Mapping[str, onnx.NodeProto], name: str) -> int:
    """Bytes of a scale, which may be dequantised itself."""
    while name in makers and makers[name].op_type in _PASS_ON:
        name = makers[name].input[0]
    found = weights.get(name)
    return 0 if found is None else prod(found.dims) * weight_bits(found) // 8
