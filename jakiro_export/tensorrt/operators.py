"""Which ONNX operators TensorRT's parser has, by version: what a build would refuse, told before anything is copied to a device.

The table is the support matrix of onnx-tensorrt's 10.1 release, and what its changelog adds later. It says that an operator
parses, not that every type and attribute of it does; the graphs' element types are checked by `graphs.check_types`.
"""

from __future__ import annotations

from collections import Counter

import onnx

from jakiro_export.ops import DOMAIN

_NAMES = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu
    Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid
    HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu
    Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min
    Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow QuantizeLinear RNN
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin
    Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
"""
_PARSED = frozenset(_NAMES.split())
# By the version that brought them
_ADDED = {"tensorrt": {(10, 15): ("RMSNormalization", "RotaryEmbedding", "Attention")}}
_ADDED["tensorrt-rtx"] = {(1, 7): _ADDED["tensorrt"][10, 15]}
_REFUSED = {"tensorrt": (), "tensorrt-rtx": ("NonZero", "DeformConv")}

_PLUGINS = ("ExpertDispatch", "GroupMatMul")  # of libjakiro_plugins.so


def parsed(kind: str, version: tuple[int, ...]) -> frozenset[str]:
    """The operators that a version's parser has. kind: "tensorrt" or "tensorrt-rtx"."""
    added = (names for since, names in _ADDED[kind].items() if version[:2] >= since)
    return _PARSED.union(*added).difference(_REFUSED[kind])


def unparsed(model: onnx.ModelProto, kind: str, version: tuple[int, ...], plugin: bool) -> dict[str, int]:
    """The operators of a model that a version's parser does not have, and how often each occurs.

    plugin: the plugin library is there, which brings expert dispatch
    """
    known = parsed(kind, version)
    found: Counter[str] = Counter()
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx"):
            found[node.op_type] += node.op_type not in known
        else:
            found[node.op_type] += not (plugin and node.domain == DOMAIN and node.op_type in _PLUGINS)
    return dict(+found)
