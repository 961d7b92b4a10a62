"""Our own operators and a few of ATen's, in standard ONNX. Speed is decided here.

Shapes are static but for the batch dimension; figures in comments are ratios measured on x86-64, onnxruntime 1.31.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from onnxscript import opset18

from edgefl_exporter.lowering import hashing, recurrent

aten = torch.ops.aten
ours = torch.ops.edgefl
op: Any = opset18  # its types do not know values that are still being recorded

Value = Any  # onnx_ir.Value, with operators overloaded while a graph is being recorded


def table() -> dict[Any, Callable[..., Any]]:
    """Torch operator -> function that records its ONNX nodes."""
    return {
        ours.conv_input_gradient.default: conv_input_gradient,
        ours.conv_weight_gradient.default: conv_weight_gradient,
        ours.max_pool.default: max_pool,
        ours.max_pool_gradient.default: max_pool_gradient,
        ours.uniform.default: hashing.uniform,
        ours.scan.default: recurrent.onnx_scan,
        aten.sym_numel.default: count,
        torch.ops.prims.prod.default: product,
    }


def count(x: Value) -> Value:
    """How many elements a tensor has."""
    return op.Size(x)


def product(x: Value, axes: Sequence[int] | None = None, dtype: int = -1) -> Value:
    return op.ReduceProd(x, keepdims=0) if axes is None else op.ReduceProd(x, _ints(*axes), keepdims=0)


def conv_input_gradient(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Value:
    """A transposed convolution with the forward's own numbers, padded to the input's size."""
    spatial = len(stride)
    kernel = _static(w)[2:]
    missing = [
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, s, p, d, k in zip(_static(x)[2:], _static(g)[2:], stride, padding, dilation, kernel, strict=True)
    ]
    assert len(kernel) == spatial
    return op.ConvTranspose(
        g,
        w,
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        group=groups,
        kernel_shape=kernel,
        output_padding=missing,
    )


def conv_weight_gradient(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Value:
    """The form that measured best for the shape.

    Best times relative to the swapped convolution, 1 thread, nine shapes of 1x1 to 5x5 kernels: with 16 to 64 input
    channels, shifted products 0.24-0.63, patches per example 0.24-1.2, one Gemm of all patches 0.26-1.4; with one
    channel, patches per example 0.54-0.78, shifted products 0.74-1.4.
    """
    places = math.prod(_static(w)[2:])
    if groups > 1 or places > MOST_PLACES:
        return _swapped_convolution(g, x, w, stride, padding, dilation, groups)
    if _static(x)[1] >= FEWEST_CHANNELS:
        return _shifted_products(g, x, w, stride, padding, dilation)
    return _patch_products(g, x, w, stride, padding, dilation)


MOST_PLACES = 49  # of a kernel: each costs a Slice and a MatMul
FEWEST_CHANNELS = 8  # below this a shifted product is too narrow


def _shifted_products(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Value:
    """One product g^T x per place of the kernel, of x shifted to that place; channels last, so that a shift copies
    whole rows of channels."""
    outputs, inputs, *kernel = _static(w)
    spatial = list(range(2, 2 + len(kernel)))
    last = op.Transpose(_pad(x, padding), perm=[0, *spatial, 1])  # [N, ..., I]
    axes = [axis - 1 for axis in spatial]
    turned = op.Reshape(op.Transpose(g, perm=[1, 0, *spatial]), _ints(outputs, -1))  # [O, N * places of g]
    products = []
    for shifted in _shifts(last, axes, _static(g)[2:], kernel, stride, dilation):
        rows = op.Reshape(shifted, _ints(-1, inputs))
        products.append(op.Reshape(op.MatMul(turned, rows), _ints(outputs, inputs, 1)))
    return op.Reshape(op.Concat(*products, axis=2), _ints(outputs, inputs, *kernel))


def _patch_products(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Value:
    """All patches of x gathered, one product per example, summed over the batch."""
    outputs, inputs, *kernel = _static(w)
    axes = list(range(2, 2 + len(kernel)))
    size = math.prod(_static(g)[2:])
    shifts = _shifts(_pad(x, padding), axes, _static(g)[2:], kernel, stride, dilation)
    patches = op.Concat(*[op.Reshape(shifted, _ints(-1, inputs, size)) for shifted in shifts], axis=1)
    products = op.MatMul(op.Reshape(g, _ints(-1, outputs, size)), op.Transpose(patches, perm=[0, 2, 1]))
    total = op.ReduceSum(products, _ints(0), keepdims=0)  # [O, places of the kernel * I]
    places = op.Reshape(total, _ints(outputs, math.prod(kernel), inputs))
    return op.Reshape(op.Transpose(places, perm=[0, 2, 1]), _ints(outputs, inputs, *kernel))


def _pad(x: Value, padding: Sequence[int]) -> Value:
    """x with zeros around its spatial dimensions."""
    return op.Pad(x, _ints(0, 0, *padding, 0, 0, *padding)) if any(padding) else x


def _shifts(
    x: Value,
    axes: Sequence[int],
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Iterator[Value]:
    """For each place of the kernel, row by row: what that place saw of the padded x, as large as the output."""
    for place in itertools.product(*map(range, kernel)):
        start = [i * d for i, d in zip(place, dilation, strict=True)]
        end = [a + (n - 1) * s + 1 for a, n, s in zip(start, size, stride, strict=True)]
        yield op.Slice(x, _ints(*start), _ints(*end), _ints(*axes), _ints(*stride))


def _ints(*values: int) -> Value:
    return op.Constant(value_ints=list(values))


def _swapped_convolution(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Value:
    """A convolution of x by g in which batch and channels change places, stride and dilation too.

    With groups, x is laid out [I/groups, groups * N, ...] so that one grouped convolution does all.
    """
    kernel = _static(w)[2:]
    inputs = _static(x)[1]
    spatial = list(range(2, 2 + len(kernel)))
    if groups == 1:
        turned = op.Transpose(x, perm=[1, 0, *spatial])
    else:
        size = _static(x)[2:]
        parts = op.Reshape(x, _ints(-1, groups, inputs // groups, *size))
        turned = op.Transpose(parts, perm=[2, 1, 0, *[axis + 1 for axis in spatial]])
        turned = op.Reshape(turned, _ints(inputs // groups, -1, *size))
    result = op.Conv(
        turned,
        op.Transpose(g, perm=[1, 0, *spatial]),
        strides=list(dilation),
        dilations=list(stride),
        pads=[*padding, *padding],
        group=groups,
    )
    # A stride that does not divide leaves rows at the end that no window reached: extra columns, cut off.
    surplus = [
        (size + 2 * p - (s * (out - 1) + 1)) // d + 1 - k
        for size, out, s, p, d, k in zip(_static(x)[2:], _static(g)[2:], stride, padding, dilation, kernel, strict=True)
    ]
    if any(surplus):
        result = op.Slice(result, _ints(*[0] * len(kernel)), _ints(*kernel), _ints(*spatial))
    return op.Transpose(result, perm=[1, 0, *spatial])


def max_pool(
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Value, Value]:
    """MaxPool with the places of its maxima."""
    y, places = op.MaxPool(
        x,
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        ceil_mode=int(ceil_mode),
    )
    return y, places


def max_pool_gradient(
    g: Value,
    places: Value,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    overlapping: bool,
) -> Value:
    """Each element of g to its place.

    Windows that do not overlap never meet in a place, and MaxUnpool is just that: one pass. Places and MaxUnpool
    together cost 0.8x torch's pool and its backward; broadcast equality masks were a quarter of the MNIST CNN's step.
    """
    shape = op.Shape(x)
    # With ceil_mode the last window may reach beyond the input; MaxUnpool refuses to give so small a result.
    reach = [(out - 1) * s - 2 * p + k for out, s, p, k in zip(_static(g)[2:], stride, padding, kernel, strict=True)]
    fits = all(r <= size for r, size in zip(reach, _static(x)[2:], strict=True))
    if fits and not overlapping:
        return op.MaxUnpool(
            g, places, shape, kernel_shape=list(kernel), strides=list(stride), pads=[*padding, *padding]
        )
    row = _ints(-1)
    zeros = op.Expand(op.Constant(value_float=0.0), op.Reshape(op.ReduceProd(shape), _ints(1)))
    flat = op.ScatterElements(zeros, op.Reshape(places, row), op.Reshape(g, row), axis=0, reduction="add")
    return op.Reshape(flat, shape)


def _static(value: Value) -> list[int]:
    """A value's shape as numbers; only the first may be unknown (given as -1)."""
    shape = [d if isinstance(d, int) else -1 for d in value.shape]
    assert -1 not in shape[1:], f"{value.name}: {value.shape}"
    return shape
