"""Our own operators and a few of ATen's, in standard ONNX. Speed is decided here.

Shapes are static but for the batch dimension; figures in comments are ratios measured on x86-64, onnxruntime 1.31.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18 as op

aten = torch.ops.aten
ours = torch.ops.edgefl

Value = Any  # onnx_ir.Value, with operators overloaded while a graph is being recorded


def table() -> dict[Any, Callable[..., Any]]:
    """Torch operator -> function that records its ONNX nodes."""
    return {
        ours.conv_input_gradient.default: conv_input_gradient,
        ours.conv_weight_gradient.default: conv_weight_gradient,
        ours.max_pool.default: max_pool,
        ours.max_pool_gradient.default: max_pool_gradient,
    }


def conv_input_gradient(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Value:
    """A transposed convolution with the forward's own numbers, padded to the input's size."""
    spatial = len(stride)
    kernel = _static(w)[2:]
    missing = [
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, s, p, d, k in zip(
            _static(x)[2:], _static(g)[2:], stride, padding, dilation, kernel, strict=True
        )
    ]
    assert len(kernel) == spatial
    return op.ConvTranspose(
        g, w, strides=list(stride), pads=[*padding, *padding], dilations=list(dilation), group=groups,
        kernel_shape=kernel, output_padding=missing,
    )


def conv_weight_gradient(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Value:
    """A convolution of x by g in which batch and channels change places, stride and dilation too.

    With groups, x is laid out [I/groups, groups * N, ...] so that one grouped convolution does all.
    """
    kernel = _static(w)[2:]
    inputs, outputs = _static(x)[1], _static(g)[1]
    spatial = list(range(2, 2 + len(kernel)))
    if groups == 1:
        turned = op.Transpose(x, perm=[1, 0, *spatial])
    else:
        size = _static(x)[2:]
        parts = op.Reshape(x, op.Constant(value_ints=[-1, groups, inputs // groups, *size]))
        turned = op.Transpose(parts, perm=[2, 1, 0, *[axis + 1 for axis in spatial]])
        rows = op.Concat(
            op.Constant(value_ints=[inputs // groups]), op.Constant(value_ints=[-1]),
            op.Constant(value_ints=size), axis=0,
        )
        turned = op.Reshape(turned, rows)
    filters = op.Transpose(g, perm=[1, 0, *spatial])
    # A stride that does not divide leaves rows at the end that no window reached: they give extra columns, cut off.
    result = op.Conv(
        turned, filters, strides=list(dilation), dilations=list(stride), pads=[*padding, *padding], group=groups
    )
    surplus = [
        (size + 2 * p - (s * (out - 1) + 1)) // d + 1 - k
        for size, out, s, p, d, k in zip(
            _static(x)[2:], _static(g)[2:], stride, padding, dilation, kernel, strict=True
        )
    ]
    if any(surplus):
        result = op.Slice(
            result, op.Constant(value_ints=[0] * len(kernel)), op.Constant(value_ints=kernel),
            op.Constant(value_ints=spatial),
        )
    assert outputs == _static(w)[0]
    return op.Transpose(result, perm=[1, 0, *spatial])


def max_pool(
    x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Value, Value]:
    """MaxPool with the places of its maxima."""
    y, places = op.MaxPool(
        x, kernel_shape=list(kernel), strides=list(stride), pads=[*padding, *padding], dilations=list(dilation),
        ceil_mode=int(ceil_mode),
    )
    return y, places


def max_pool_gradient(
    g: Value, places: Value, x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    overlapping: bool,
) -> Value:
    """Each element of g to its place.

    Windows that do not overlap never meet in a place, and MaxUnpool is just that: one pass. Places and MaxUnpool
    together cost 0.8x torch's pool and its backward; equality masks cost 2.5x (tried first).
    """
    shape = op.Shape(x)
    # With ceil_mode the last window may reach beyond the input; MaxUnpool refuses to give so small a result.
    reach = [
        (out - 1) * s - 2 * p + k for out, s, p, k in zip(_static(g)[2:], stride, padding, kernel, strict=True)
    ]
    fits = all(r <= size for r, size in zip(reach, _static(x)[2:], strict=True))
    if fits and not overlapping:
        return op.MaxUnpool(
            g, places, shape, kernel_shape=list(kernel), strides=list(stride), pads=[*padding, *padding]
        )
    row = op.Constant(value_ints=[-1])
    zeros = op.Expand(op.Constant(value_float=0.0), op.Reshape(op.ReduceProd(shape), op.Constant(value_ints=[1])))
    flat = op.ScatterElements(zeros, op.Reshape(places, row), op.Reshape(g, row), axis=0, reduction="add")
    return op.Reshape(flat, shape)


def _static(value: Value) -> list[int]:
    """A value's shape as numbers; only the first may be unknown (given as -1)."""
    shape = [d if isinstance(d, int) else -1 for d in value.shape]
    assert -1 not in shape[1:], f"{value.name}: {value.shape}"
    return shape
