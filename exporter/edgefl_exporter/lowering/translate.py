"""Our own operators and a few of ATen's, in standard ONNX. Speed is decided here.

Shapes are static but for the batch dimension; figures in comments are ratios measured on x86-64, onnxruntime 1.31.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from onnxscript import opset18

from edgefl_exporter.lowering import hashing, loop_onnx, recurrent

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
        ours.loop_begin.default: loop_onnx.onnx_begin,
        ours.loop_end.default: loop_onnx.onnx_end,
        aten.sym_numel.default: count,
        torch.ops.prims.prod.default: product,
        ours.relu_gradient.default: relu_gradient,
        ours.scale_shift.default: scale_shift,
    }


def count(x: Value) -> Value:
    """How many elements a tensor has."""
    return op.Size(x)


def product(x: Value, axes: Sequence[int] | None = None, dtype: int = -1) -> Value:
    return op.ReduceProd(x, keepdims=0) if axes is None else op.ReduceProd(x, _ints(*axes), keepdims=0)


def conv_input_gradient(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Value:
    """A transposed convolution with the forward's own numbers, padded to the input's size.

    A kernel of one place at stride 1 is a matrix product, which Conv does directly: 0.46 of ConvTranspose.
    """
    spatial = len(stride)
    kernel = _static(w)[2:]
    assert len(kernel) == spatial
    if _is_product(kernel, stride, padding) and groups == 1:
        return op.Conv(g, op.Transpose(w, perm=[1, 0, *range(2, 2 + spatial)]))
    missing = [
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, s, p, d, k in zip(_static(x)[2:], _static(g)[2:], stride, padding, dilation, kernel, strict=True)
    ]
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
    channel, patches per example 0.54-0.78, shifted products 0.74-1.4. A product per example is 0.6-0.8 of shifted
    products at 1x1. Depthwise, products of rows are 0.2-0.6.
    """
    outputs, inputs, *kernel = _static(w)
    if groups == outputs == _static(x)[1] and len(kernel) <= 2:
        if _static(x)[-1] <= WIDEST_ROWS:
            return _row_products(g, x, w, stride, padding, dilation)
        return _place_sums(g, x, w, stride, padding, dilation)
    if groups > 1 or math.prod(kernel) > MOST_PLACES:
        return _swapped_convolution(g, x, w, stride, padding, dilation, groups)
    if inputs >= FEWEST_CHANNELS and math.prod(kernel) > 1:
        return _shifted_products(g, x, w, stride, padding, dilation)
    return _patch_products(g, x, w, stride, padding, dilation)


def _is_product(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether a convolution only mixes channels."""
    return set(kernel) == {1} and set(stride) == {1} and set(padding) == {0}


WIDEST_ROWS = 64  # of a product of rows, which computes all pairs of columns to use a kernel's width of them
MOST_PLACES = 49  # of a kernel: each costs a Slice and a MatMul
FEWEST_CHANNELS = 8  # below this a shifted product is too narrow


def _shifted_products(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Value:
    """One product g^T x per place of the kernel, of x shifted to that place; channels last, so that a shift copies
    whole rows of channels."""
    outputs, inputs, *kernel = _static(w)
    spatial = list(range(2, 2 + len(kernel)))
    last = op.Transpose(x, perm=[0, *spatial, 1])  # [N, ..., I]
    if any(padding):  # now, not before: longer rows are copied faster
        last = op.Pad(last, _ints(0, *padding, 0, 0, *padding, 0))
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


def _row_products(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Value:
    """Depthwise: per channel, the product over all rows of g's columns with x's columns; the kernel's columns are
    sums along diagonals of it.

    Rows of x are taken `s` at a time, s the vertical stride, and g moved up or down to meet them, so x is never
    shifted or padded. One-dimensional convolutions are one row high.
    """
    channels, _, *kernel = _static(w)
    flat = len(kernel) == 1
    size, out = _static(x)[2:], _static(g)[2:]
    height, rows, tall = (1, 1, 1) if flat else (size[0], out[0], kernel[0])
    s, p, d = (1, 0, 1) if flat else (stride[0], padding[0], dilation[0])
    width, columns, wide = size[-1], out[-1], kernel[-1]
    blocks = -(-height // s)
    xs = op.Transpose(op.Reshape(x, _ints(-1, channels, height, width)) if flat else x, perm=[1, 0, 2, 3])
    if blocks * s > height:
        xs = op.Pad(xs, _ints(0, 0, 0, 0, 0, 0, blocks * s - height, 0))
    xs = op.Reshape(xs, _ints(channels, -1, s * width))
    gs = op.Transpose(op.Reshape(g, _ints(-1, channels, rows, columns)) if flat else g, perm=[1, 0, 2, 3])
    products: dict[int, Value] = {}
    found = []
    for i in range(tall):
        move, rest = divmod(i * d - p, s)
        if move not in products:
            moved = gs
            if move or blocks != rows:
                moved = op.Pad(gs, _ints(0, 0, move, 0, 0, 0, blocks - rows - move, 0))
            turned = op.Transpose(op.Reshape(moved, _ints(channels, -1, columns)), perm=[0, 2, 1])
            products[move] = op.MatMul(turned, xs)  # [C, columns, s * width]
        part = products[move]
        if s > 1:
            part = op.Slice(part, _ints(rest * width), _ints((rest + 1) * width), _ints(2))
        found.append(op.Reshape(part, _ints(channels, 1, columns, width)))
    pairs = op.Concat(*found, axis=1) if tall > 1 else found[0]
    sums = _diagonal_sums(pairs, (channels, tall, columns, width), wide, stride[-1], padding[-1], dilation[-1])
    return op.Reshape(sums, _ints(channels, 1, *kernel))


def _diagonal_sums(
    pairs: Value, shape: tuple[int, int, int, int], wide: int, stride: int, padding: int, dilation: int
) -> Value:
    """[C, tall, columns, width] -> [C, tall, wide]: element j sums pairs[..., o, o * stride + j * dilation - padding].

    Rows made longer by `stride` put a diagonal of that slope into one column.
    """
    channels, tall, columns, width = shape
    reach = dilation * (wide - 1) + 1
    row = max(width + padding, (columns - 1) * stride + reach)
    padded = op.Pad(pairs, _ints(0, 0, 0, padding, 0, 0, 0, row - width - padding))
    straight = op.Reshape(padded, _ints(channels, tall, columns * row))
    longer = op.Pad(straight, _ints(0, 0, 0, 0, 0, columns * stride))
    slanted = op.Reshape(longer, _ints(channels, tall, columns, row + stride))
    used = op.Slice(slanted, _ints(0), _ints(reach), _ints(3), _ints(dilation))
    return op.ReduceSum(used, _ints(2), keepdims=0)


def _place_sums(
    g: Value, x: Value, w: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Value:
    """Depthwise: per place of the kernel, the sum of g times what that place saw."""
    channels, _, *kernel = _static(w)
    axes = list(range(2, 2 + len(kernel)))
    sums = []
    for shifted in _shifts(_pad(x, padding), axes, _static(g)[2:], kernel, stride, dilation):
        total = op.ReduceSum(op.Mul(g, shifted), _ints(0, *axes), keepdims=0)
        sums.append(op.Reshape(total, _ints(channels, 1)))
    return op.Reshape(op.Concat(*sums, axis=1), _ints(channels, 1, *kernel))


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
    """The maxima and their places."""
    if math.prod(kernel) <= MOST_POOLS:
        return _pool_and_places(x, kernel, stride, padding, dilation, ceil_mode)
    y, places = op.MaxPool(
        x,
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, *padding],
        dilations=list(dilation),
        ceil_mode=int(ceil_mode),
    )
    return y, places


MOST_POOLS = 9  # for larger windows MaxPool's own places are as fast


def _pool_and_places(
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Value, Value]:
    """Places from pools of the upper left parts of each window; 0.21 of MaxPool's own places at 2x2.

    onnxruntime's MaxPool takes 20 times as long when it also gives places. The first maximum, row by row, lies beyond
    the first i rows where their maximum is less than the window's. It lies beyond the first j columns where, in its
    row and those above, their maximum is less.
    """
    planes, height, width = _static(x)[1:]
    out = [
        _pooled(n, k, s, p, d, ceil_mode)
        for n, k, s, p, d in zip((height, width), kernel, stride, padding, dilation, strict=True)
    ]
    end = [
        (o - 1) * s + d * (k - 1) + 1 - n - p
        for o, n, k, s, p, d in zip(out, (height, width), kernel, stride, padding, dilation, strict=True)
    ]  # what the windows reach beyond x; negative where they leave a rest
    if any(padding) or any(end):
        x_all = op.Pad(x, _ints(0, 0, *padding, 0, 0, *end), op.Constant(value_float=-math.inf))
    else:
        x_all = x

    def pool(rows: int, columns: int) -> Value:
        # A part of the window has room for more positions at the end than the window; they are the rest cut off.
        reach = [(k - part) * d for k, part, d in zip(kernel, (rows, columns), dilation, strict=True)]
        spare = [r >= s for r, s in zip(reach, stride, strict=True)]
        y, _ = op.MaxPool(x_all, kernel_shape=[rows, columns], strides=list(stride), dilations=list(dilation))
        return op.Slice(y, _ints(0, 0), _ints(*out), _ints(2, 3)) if any(spare) else y

    y = pool(*kernel)
    below = {i: op.Less(pool(i, kernel[1]), y) for i in range(1, kernel[0])}
    terms = [op.Mul(op.Cast(b, to=_FLOAT), op.Constant(value_float=float(dilation[0] * width))) for b in below.values()]
    for j in range(1, kernel[1]):
        beyond = op.Less(pool(1, j), y)
        for i, reached in below.items():
            beyond = op.And(beyond, op.Or(op.Less(pool(i + 1, j), y), op.Not(reached)))
        step = op.Cast(beyond, to=_FLOAT)
        terms.append(step if dilation[1] == 1 else op.Mul(step, op.Constant(value_float=float(dilation[1]))))
    count = op.ReduceProd(op.Slice(op.Shape(x), _ints(0), _ints(2)), keepdims=0)
    first = op.Mul(op.Range(_int(0), count, _int(1)), _int(height * width))
    corner = op.Add(
        op.Reshape(first, _ints(-1, planes, 1, 1)),
        op.Reshape(_ints(*((o * stride[0] - padding[0]) * width - padding[1] for o in range(out[0]))), _ints(-1, 1)),
    )
    corner = op.Add(corner, _ints(*(o * stride[1] for o in range(out[1]))))
    for offset in _summed(terms):
        corner = op.Add(corner, op.Cast(offset, to=_INT64))
    return y, corner


def _pooled(n: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    """How many windows PyTorch's pool has along an axis; with ceil_mode none starts in the padding at the end."""
    room = n + 2 * p - d * (k - 1) - 1
    out = (-(-room // s) if ceil_mode else room // s) + 1
    return out - 1 if ceil_mode and (out - 1) * s >= n + p else out


def _summed(terms: Sequence[Value]) -> list[Value]:
    """The sum of the terms, as a list of one; of none, an empty one."""
    return [functools.reduce(lambda a, b: op.Add(a, b), terms)] if terms else []


_FLOAT, _INT64 = 1, 7  # ONNX's numbers for types


def _int(value: int) -> Value:
    return op.Constant(value_int=value)


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


def relu_gradient(g: Value, y: Value) -> Value:
    """g between -b and b, with b = 0 where y is 0 and infinite elsewhere: 0.2 to 0.45 of `Where`'s time.

    Exact for infinite gradients too. A NaN stays one where y is 0; where y is denormal, g is cut at 1e32.
    """
    largest = op.Constant(value_float=3.4e38)
    bound = op.Mul(op.Mul(y, largest), largest)
    return op.Min(op.Max(g, op.Neg(bound)), bound)


def scale_shift(x: Value, scale: Value, shift: Value) -> Value:
    """BatchNormalization with mean 0 and variance 1: one pass, where Mul and Add are two."""
    channels = _static(x)[1]
    zeros, ones = (op.Constant(value_floats=[v] * channels) for v in (0.0, 1.0))
    return op.BatchNormalization(x, scale, shift, zeros, ones, epsilon=0.0)


def _static(value: Value) -> list[int]:
    """A value's shape as numbers; only the first may be unknown (given as -1)."""
    shape = [d if isinstance(d, int) else -1 for d in value.shape]
    assert -1 not in shape[1:], f"{value.name}: {value.shape}"
    return shape
