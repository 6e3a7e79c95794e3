"""The rows of the ONNX import tests: one node each, with the shapes and attributes that matter."""

from __future__ import annotations

import numpy as np
from onnx_row import (
    BOOL,
    FLOAT,
    INT8,
    INT64,
    UINT8,
    fixed,
    floats,
    i,
    ints,
    node,
    old,
    typed,
    w,
    x,
)

IMAGE, ODD, SEQUENCE = x(2, 4, 8, 8), x(2, 4, 7, 9), x(2, 4, 9)
SAME = ("SAME_UPPER", "SAME_LOWER", "VALID")

CONVOLUTIONS = (
    node("Conv", IMAGE, w(6, 4, 3, 3), w(6), pads=[1, 1, 1, 1]),
    node("Conv", IMAGE, w(6, 4, 3, 3), pads=[0, 1, 2, 1], strides=[2, 2]),
    node("Conv", ODD, w(4, 1, 3, 3), w(4), group=4, dilations=[2, 2], pads=[2, 2, 2, 2]),
    node("Conv", SEQUENCE, w(6, 4, 3), w(6), pads=[1, 1]),
    node("Conv", x(1, 2, 4, 5, 6), w(3, 2, 2, 2, 2), w(3)),
    *(node("Conv", ODD, w(6, 4, 4, 3), auto_pad=mode, strides=[2, 2]) for mode in SAME),
    *(node("Conv", IMAGE, w(6, 4, 3, 3), auto_pad=mode, strides=[2, 2]) for mode in SAME),
    node("ConvTranspose", IMAGE, w(4, 3, 3, 3), w(3), strides=[2, 2], pads=[1, 1, 1, 1]),
    node("ConvTranspose", IMAGE, w(4, 3, 3, 3), strides=[2, 2], pads=[0, 1, 1, 0]),
    node("ConvTranspose", IMAGE, w(4, 2, 3, 3), strides=[2, 2], output_padding=[1, 1], group=2),
    node("ConvTranspose", IMAGE, w(4, 3, 3, 3), strides=[2, 2], output_shape=[16, 16]),
    node("ConvTranspose", IMAGE, w(4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    node("ConvTranspose", SEQUENCE, w(4, 3, 3), w(3), dilations=[2]),
)

POOLS = (
    node("MaxPool", ODD, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    node("MaxPool", ODD, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    node("MaxPool", ODD, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
    node("MaxPool", ODD, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    node("MaxPool", ODD, kernel_shape=[3, 3], auto_pad="SAME_LOWER", strides=[2, 2]),
    node("MaxPool", ODD, kernel_shape=[2, 2], dilations=[2, 3]),
    node("MaxPool", SEQUENCE, kernel_shape=[3], strides=[2]),
    node("AveragePool", ODD, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    node("AveragePool", ODD, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    node("AveragePool", ODD, kernel_shape=[3, 3], pads=[0, 1, 2, 1], strides=[2, 2]),
    node("AveragePool", ODD, kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    node("AveragePool", ODD, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    node("GlobalAveragePool", ODD),
    node("GlobalMaxPool", ODD),
)

NORMS = (
    node("BatchNormalization", IMAGE, w(4), w(4), w(4), w(4, low=0.5), epsilon=1e-3),
    node("BatchNormalization", SEQUENCE, w(4), w(4), w(4), w(4, low=0.5)),
    node("InstanceNormalization", IMAGE, w(4), w(4)),
    node("LayerNormalization", SEQUENCE, w(9), w(9)),
    node("LayerNormalization", SEQUENCE, w(4, 9), axis=-2),
    old(21, "GroupNormalization", IMAGE, w(4), w(4), num_groups=2),
    old(23, "RMSNormalization", SEQUENCE, w(9)),
    old(24, "Swish", x(2, 5), alpha=0.5),
    node("LRN", IMAGE, size=3, alpha=0.1),
    node("LpNormalization", SEQUENCE, p=1, axis=1),
    node("LpNormalization", SEQUENCE, p=2),
)

MATRICES = (
    node("Gemm", x(3, 4), w(4, 5), w(5)),
    node("Gemm", x(3, 4), w(5, 4), w(5), transB=1),
    node("Gemm", x(3, 4), w(5, 4), transB=1),
    node("Gemm", x(3, 4), w(5, 4), w(1, 5), transB=1),
    node("Gemm", x(3, 4), w(4, 5), w(1), alpha=0.5, beta=2.0),
    fixed("Gemm", x(4, 3), w(5, 4), w(3, 5), transA=1, transB=1, alpha=0.5),
    fixed("Gemm", x(3, 4), x(4, 5), x(3, 1)),
    node("MatMul", x(3, 4), w(4, 5)),
    node("MatMul", x(2, 3, 4), w(4, 5)),
    fixed("MatMul", x(2, 3, 4), x(2, 4, 5)),
    fixed("MatMul", x(4), x(4, 5)),
    fixed("MatMul", x(2, 1, 3, 4), x(5, 4, 2)),
    node("Einsum", x(2, 3, 4), w(4, 5), equation="bij,jk->bik"),
)

UNARY = (
    *(node(op, x(2, 5)) for op in (
        "Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity",
        "LeakyRelu", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
        "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu", "Celu",
    )),
    node("Log", x(2, 5, low=0.1)),
    node("Sqrt", x(2, 5, low=0.1)),
    node("HardSigmoid", x(2, 5), alpha=1 / 6, beta=0.5),
    node("Elu", x(2, 5), alpha=0.3),
    node("LeakyRelu", x(2, 5), alpha=0.2),
    node("Shrink", x(2, 5), bias=0.2, lambd=0.4),
    node("PRelu", IMAGE, w(4, 1, 1)),
    node("PRelu", IMAGE, w(1)),
    old(20, "Gelu", x(2, 5)),
    old(20, "Gelu", x(2, 5), approximate="tanh"),
    node("Clip", x(2, 5), np.float32(-0.5), np.float32(0.5)),
    node("Clip", x(2, 5), np.float32(0.0), np.float32(6.0)),
    node("Clip", x(2, 5), np.float32(0.0)),
    node("Clip", x(2, 5), None, np.float32(0.25)),
    node("Clip", x(2, 5)),
    old(6 + 1, "Clip", x(2, 5), min=-0.5, max=0.25),
    node("Asin", x(2, 5, low=-0.9, high=0.9)),
    node("Acos", x(2, 5, low=-0.9, high=0.9)),
    *(node(op, x(2, 5)) for op in ("Atan", "Cosh", "Sinh")),
    old(18, "Mish", x(2, 5)),
    typed((BOOL,), node("IsNaN", x(2, 5))),
    typed((BOOL,), node("IsInf", x(2, 5), detect_negative=0)),
    typed((INT64,), node("CastLike", x(2, 5), ints(1))),
    typed((INT64,), node("Cast", x(2, 5), to=INT64)),
)  # fmt: skip

BINARY = (
    *(node(op, x(2, 5), w(5, low=0.5)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    node("Pow", x(2, 5, low=0.5), w(5)),
    node("Mod", x(2, 5), w(5, low=0.5), fmod=1),
    node("Sum", x(2, 5), w(5), w(1)),
    node("Mean", x(2, 5), w(5), w(1)),
    node("Where", np.array([True, False, True]), x(2, 3), w(3)),
    *(typed((BOOL,), node(op, i(2, 5, below=2), i(2, 5, below=2))) for op in ("And", "Or", "Xor")),
    typed((BOOL,), node("Not", i(2, 5, below=2))),
    *(typed((INT64,), old(18, op, i(2, 5, below=9), ints(3, 5, 1, 4, 7))) for op in (
        "BitwiseAnd", "BitwiseOr", "BitwiseXor",
    )),
    typed((INT64,), old(18, "BitwiseNot", i(2, 5, below=9))),
    typed((INT64,), node("Div", i(2, 5, below=9), ints(2, 3, 1, 4, 7))),
    typed((INT64,), node("Mod", i(2, 5, below=9), ints(2, 3, 1, -4, -7))),
    *(typed((BOOL,), node(op, x(2, 5), w(5))) for op in (
        "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    )),
)  # fmt: skip

REDUCTIONS = (
    *(node(f"Reduce{kind}", x(2, 3, 4, low=0.1), axes=[1]) for kind in (
        "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare",
    )),
    node("ReduceMean", IMAGE, axes=[2, 3]),
    node("ReduceMean", IMAGE, axes=[-1, -2], keepdims=0),
    fixed("ReduceMean", x(2, 3)),
    old(18, "ReduceMean", IMAGE, ints(2, 3)),
    old(18, "ReduceMax", IMAGE, ints(-1), keepdims=0),
    old(18, "ReduceMean", IMAGE, noop_with_empty_axes=1),
    node("ReduceSum", x(2, 3, 4), ints(1, 2), keepdims=0),
    old(11, "ReduceSum", x(2, 3, 4), axes=[2]),
    typed((INT64,), node("ArgMax", x(2, 5), axis=1, keepdims=0)),
    typed((INT64,), node("ArgMin", x(2, 5), axis=-1)),
    typed((INT64,), node("ArgMax", x(2, 5), axis=1, select_last_index=1)),
    typed((FLOAT, INT64), node("TopK", x(2, 7), ints(3))),
    typed((FLOAT, INT64), node("TopK", x(2, 7), ints(3), largest=0, axis=1)),
    node("CumSum", x(2, 5), np.int64(1)),
    node("CumSum", x(2, 5), np.int64(1), exclusive=1, reverse=1),
    node("Softmax", x(2, 3, 4)),
    node("Softmax", x(2, 3, 4), axis=1),
    node("LogSoftmax", x(2, 3, 4), axis=1),
    node("Hardmax", x(2, 3, 4), axis=1),
    *(old(opset, op, x(2, 3, 4)) for op in ("Softmax", "LogSoftmax", "Hardmax") for opset in (11,)),
    old(11, "Softmax", x(2, 3, 4), axis=2),
    old(11, "Softmax", x(2, 3, 4), axis=-1),
)  # fmt: skip

LAYOUT = (
    node("Reshape", x(2, 3, 4), ints(0, -1)),
    node("Reshape", x(2, 3, 4), ints(-1, 4)),
    node("Reshape", x(2, 6), ints(0, 2, 3)),
    node("Flatten", IMAGE),
    node("Flatten", IMAGE, axis=2),
    fixed("Flatten", IMAGE, axis=0),
    node("Flatten", IMAGE, axis=-1),
    node("Transpose", IMAGE, perm=[0, 2, 3, 1]),
    fixed("Transpose", x(2, 3, 4)),
    node("Squeeze", x(2, 1, 4, 1), ints(1, -1)),
    old(11, "Squeeze", x(2, 1, 4), axes=[1]),
    node("Unsqueeze", x(2, 3), ints(1, -1)),
    old(11, "Unsqueeze", x(2, 3), axes=[0, 2]),
    node("Concat", x(2, 3), x(2, 5), axis=1),
    node("Concat", x(2, 3), x(2, 3), w(2, 3), axis=0),
    node("Concat", x(2, 3), x(2, 5), axis=-1),
    typed((FLOAT, FLOAT), node("Split", x(2, 6), axis=1)),
    typed((FLOAT, FLOAT), node("Split", x(2, 6), ints(2, 4), axis=-1)),
    typed((FLOAT, FLOAT, FLOAT), old(18, "Split", x(2, 7), axis=1, num_outputs=3)),
    typed((FLOAT, FLOAT), old(11, "Split", x(2, 6), axis=1, split=[1, 5])),
    node("Slice", x(2, 8), ints(1), ints(7), ints(1), ints(2)),
    node("Slice", x(2, 8), ints(-3), ints(2**63 - 1), ints(-1)),
    node("Slice", x(2, 8), ints(-1), ints(-(2**63)), ints(1), ints(-1)),
    node("Slice", x(2, 8), ints(6), ints(1), ints(1), ints(-2)),
    node("Slice", x(2, 8), ints(0), ints(1), ints(0)),
    node("Slice", x(2, 8), ints(2), ints(100), ints(1)),
    old(9, "Slice", x(2, 8), starts=[1], ends=[-1], axes=[1]),
    node("Gather", x(2, 5), ints(0, -1, 3), axis=1),
    node("Gather", x(2, 5), np.int64(2), axis=1),
    fixed("Gather", x(5, 2), np.array([[0, 1], [4, -1]], np.int64)),
    fixed("GatherElements", x(3, 3), np.array([[0, 2, 1], [2, -1, 0]], np.int64)),
    fixed("GatherND", x(3, 4, 2), np.array([[0, 1], [2, -1]], np.int64)),
    fixed("ScatterElements", x(3, 3), np.array([[0, 2, 1]], np.int64), w(1, 3)),
    fixed("ScatterND", x(4, 3), np.array([[0], [2]], np.int64), w(2, 3)),
    node("Expand", x(2, 1, 3), ints(1, 4, 3)),
    node("Expand", x(2, 3), ints(4, 1, 1)),
    node("Tile", x(2, 3), ints(1, 2)),
    node("Pad", x(2, 3, 4), ints(0, 0, 1, 0, 1, 2)),
    node("Pad", x(2, 3, 4), ints(0, 0, 1, 0, 1, 2), np.float32(1.5)),
    node("Pad", x(2, 3, 4), ints(0, 0, -1, 0, 0, 2)),
    *(node("Pad", x(2, 3, 5), ints(0, 1, 2, 0, 2, 1), mode=mode) for mode in ("reflect", "edge")),
    old(19, "Pad", x(2, 3, 5), ints(0, 1, 2, 0, 2, 1), mode="wrap"),
    old(18, "Pad", x(2, 3, 4), ints(1, 2), None, ints(2)),
    old(10, "Pad", x(2, 3, 4), pads=[0, 0, 1, 0, 1, 2], value=0.5),
    node("DepthToSpace", x(2, 8, 3, 3), blocksize=2),
    node("DepthToSpace", x(2, 8, 3, 3), blocksize=2, mode="CRD"),
    node("SpaceToDepth", x(2, 2, 4, 6), blocksize=2),
    node("Trilu", x(2, 4, 4), upper=0),
    node("Trilu", x(2, 4, 4), np.int64(1)),
    node("Dropout", x(2, 5)),
    fixed("EyeLike", x(3, 4), k=1),
    typed((INT64,), node("Shape", x(2, 5))),
    typed((INT64,), node("Shape", x(2, 5, 6), start=1)),
    typed((INT64,), node("Size", x(2, 5))),
    node("OneHot", i(3, below=4), np.int64(4), floats(0, 1)),
    node("OneHot", i(3, 2, below=4), np.int64(4), floats(-1, 2), axis=1),
    fixed("Gather", w(7, 3), i(2, 4, below=7)),
    fixed("GatherElements", w(4, 3), i(2, 3, below=4)),
)

HALF = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
RESIZES = (
    *(
        node("Resize", x(1, 2, 4, 5), None, floats(1, 1, 2, 2), mode=mode,
             coordinate_transformation_mode=by)
        for mode in ("nearest", "linear") for by in HALF
    ),
    *(
        node("Resize", x(1, 2, 4, 5), None, floats(1, 1, 1.5, 0.6), mode="nearest",
             coordinate_transformation_mode="half_pixel", nearest_mode=rounding)
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    node("Resize", x(1, 2, 4, 5), None, floats(1, 1, 2, 2), mode="nearest",
         coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    fixed("Resize", x(1, 2, 4, 5), None, None, ints(1, 2, 7, 3), mode="linear"),
    node("Resize", x(1, 2, 4, 5), None, floats(1, 1, 2, 2), mode="cubic"),
    node("Resize", x(1, 2, 5), None, floats(1, 1, 2), mode="nearest"),
    old(18, "Resize", x(1, 2, 4, 5), None, floats(2, 3), axes=[2, 3], mode="linear"),
    old(10, "Resize", x(1, 2, 4, 5), floats(1, 1, 2, 2), mode="nearest"),
    old(9, "Upsample", x(1, 2, 4, 5), floats(1, 1, 2, 2), mode="linear"),
)  # fmt: skip

QUANTIZERS = (
    typed((UINT8,), node("QuantizeLinear", x(2, 5), np.float32(0.1), np.uint8(120))),
    typed((INT8,), node("QuantizeLinear", x(2, 5), np.float32(0.02), np.int8(3))),
    typed((INT8,), node("QuantizeLinear", x(2, 3, 4), floats(0.1, 0.2, 0.3),
                        np.array([0, 1, 2], np.int8), axis=1)),
    typed((UINT8,), node("QuantizeLinear", x(2, 5), np.float32(0.1))),
)  # fmt: skip

ROWS = (
    *CONVOLUTIONS, *POOLS, *NORMS, *MATRICES, *UNARY, *BINARY, *REDUCTIONS, *LAYOUT, *RESIZES,
    *QUANTIZERS,
)  # fmt: skip
