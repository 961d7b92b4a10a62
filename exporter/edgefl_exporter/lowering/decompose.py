"""ATen operators taken apart into simpler ones: PyTorch's own table, and what it lacks or what is wrong downstream."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import default_decompositions

from edgefl_exporter.lowering.torch_internals import (
    decomposition_table,
)

aten = torch.ops.aten
ours = torch.ops.edgefl


def table() -> dict[Any, Callable[..., Any]]:
    """PyTorch's decompositions to core ATen, with ours in place of some."""
    return dict(default_decompositions()) | OURS


def backward_table() -> dict[Any, Callable[..., Any]]:
    """PyTorch's decompositions of backward operators (SiLU, Mish ...): core ATen keeps them, ONNX has none of them."""
    return {
        target: function
        for target, function in decomposition_table.items()
        if "backward" in str(target) and target not in OURS and target not in KEPT
    }


# Left whole for `rewrite`.
KEPT = {aten.max_pool2d_with_indices_backward.default, aten.adaptive_max_pool2d_backward.default}


def threshold_backward(g: Tensor, x: Tensor, threshold: float) -> Tensor:
    """A threshold's gradient, for a ReLU where `rewrite` does not see that it is one. A product with 0 or 1 would be
    faster, but 0 times an infinite gradient is no 0."""
    return torch.where(x > threshold, g, 0.0)


def convolution_backward(
    g: Tensor,
    x: Tensor,
    w: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of input, weight and bias that are wanted.

    A transposed convolution is the input gradient of a plain one, so its own input gradient is a plain convolution
    and in its weight gradient x and g change places.
    """
    gx = gw = gb = None
    none = [0] * len(stride)
    if wanted[0] and transposed:
        gx = aten.convolution(g, w, None, stride, padding, dilation, False, none, groups)
    elif wanted[0]:
        gx = ours.conv_input_gradient(g, x, w, stride, padding, dilation, groups)
    if wanted[1] and transposed:
        gw = ours.conv_weight_gradient(x, g, w, stride, padding, dilation, groups)
    elif wanted[1]:
        gw = ours.conv_weight_gradient(g, x, w, stride, padding, dilation, groups)
    if wanted[2]:
        gb = g.sum([0, *range(2, g.dim())])
    return gx, gw, gb


def _scale_shift(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """x * scale + shift per channel; in one pass where a channel has more than one place.

    InstanceNorm's channels are those of all examples together: their number is not known.
    """
    if x.dim() > 2 and isinstance(x.shape[1], int):
        return ours.scale_shift(x, scale, torch.zeros_like(scale) if shift is None else shift)  # type: ignore[no-any-return]
    y = x * _channel(scale, x)
    return y if shift is None else y + _channel(shift, x)


def batch_norm_functional(
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """BatchNorm: result, batch mean, batch 1/std, next running mean and variance.

    The running variance takes n/(n-1) times the batch variance. torch's ONNX translation of the training form was
    wrong by up to 0.095, so it is never left to it.
    """
    if not training:
        assert running_mean is not None and running_var is not None
        mean, rstd = running_mean, (running_var + eps).rsqrt()
        empty = x.new_empty((0,))
        scale = rstd if w is None else rstd * w
        shift = -mean * scale if b is None else b - mean * scale
        return _scale_shift(x, scale, shift), empty, empty, running_mean, running_var
    axes = [0, *range(2, x.dim())]
    mean = x.mean(axes)
    centred = x - _channel(mean, x)
    variance = (centred * centred).mean(axes)  # a power or ReduceSumSquare would take 3 and 8 times as long
    rstd = (variance + eps).rsqrt()
    y = _scale_shift(centred, rstd if w is None else rstd * w, b)
    if running_mean is None or running_var is None:
        return y, mean, rstd, running_mean, running_var
    unbiased = variance * _bessel(x)
    next_mean = mean * momentum + running_mean * (1 - momentum)
    next_var = unbiased * momentum + running_var * (1 - momentum)
    return y, mean, rstd, next_mean, next_var


def _bessel(x: Tensor) -> Tensor | float:
    """n / (n - 1) for n values per channel.

    Where a last batch can leave a single value (no spatial dimensions), PyTorch raises; a device cannot, and inf in a
    running variance would spoil the model. There the factor is 1 and the variance 0.
    """
    if math.prod(x.shape[2:]) > 1:
        n = x.numel() / x.shape[1]
        return n / (n - 1)
    count = torch.ones_like(x.select(1, 0)).sum()
    return count / (count - 1).clamp(min=1)


def native_batch_norm(
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The form that updates the running statistics in place."""
    y, mean, rstd, next_mean, next_var = batch_norm_functional(
        x, w, b, running_mean, running_var, training, momentum, eps
    )
    if training and running_mean is not None and running_var is not None:
        assert next_mean is not None and next_var is not None
        running_mean.copy_(next_mean)
        running_var.copy_(next_var)
    return y, mean, rstd


def _native_batch_norm_legit(
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return native_batch_norm(x, w, b, running_mean, running_var, training, momentum, eps)


def _native_batch_norm_no_stats(
    x: Tensor, w: Tensor | None, b: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return native_batch_norm(x, w, b, None, None, True, momentum, eps)


def native_batch_norm_backward(
    g: Tensor,
    x: Tensor,
    w: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    training: bool,
    eps: float,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """With batch statistics: gx = w * rstd * (g - mean(g) - xhat * mean(g * xhat)), means over all but channels."""
    if not training:
        assert running_mean is not None and running_var is not None
        mean, rstd = running_mean, (running_var + eps).rsqrt()
    assert mean is not None and rstd is not None
    axes = [0, *range(2, x.dim())]
    n = x.numel() / x.shape[1]
    centred = x - _channel(mean, x)
    sum_g = g.sum(axes)
    sum_gx = (g * centred).sum(axes)
    scale = rstd if w is None else rstd * w
    gx = None
    if wanted[0] and training:
        slope = sum_gx * (rstd * rstd) / n
        gx = (g - _scale_shift(centred, slope, sum_g / n)) * _channel(scale, x)
    elif wanted[0]:
        gx = g * _channel(scale, x)
    return gx, sum_gx * rstd if wanted[1] else None, sum_g if wanted[2] else None


def native_layer_norm_backward(
    g: Tensor,
    x: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """gx = rstd * (g w - mean(g w) - xhat * mean(g w xhat)), means over the normalised axes.

    mean, rstd are [..., 1, 1]. Both means are products with w of what the gradients of w and b add up.
    """
    outer = list(range(x.dim() - len(shape)))
    inner = list(range(x.dim() - len(shape), x.dim()))
    n = math.prod(shape)
    xhat = (x - mean) * rstd
    product = g * xhat
    gx = None
    if wanted[0] and w is not None and len(shape) == 1:
        column = w.reshape(-1, 1) / n
        gx = (g * w - xhat * (product @ column) - g @ column) * rstd
    elif wanted[0]:
        gw = g if w is None else g * w
        pw = product if w is None else product * w
        gx = (gw - xhat * pw.mean(inner, keepdim=True) - gw.mean(inner, keepdim=True)) * rstd
    gw_sum = (product.sum(outer) if outer else product) if wanted[1] else None
    gb_sum = (g.sum(outer) if outer else g) if wanted[2] else None
    return gx, gw_sum, gb_sum


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


def gelu(x: Tensor, approximate: str = "none") -> Any:
    """In the form whose first half the gradient needs too."""
    if approximate != "none":
        return NotImplemented  # stays whole
    return x * _normal_cdf(x)


def gelu_backward(g: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    """g * (cdf(x) + x pdf(x))."""
    if approximate != "none":
        return decomposition_table[aten.gelu_backward.default](g, x, approximate=approximate)  # type: ignore[no-any-return]
    density = (x * x * -0.5).exp() * (1 / math.sqrt(2 * math.pi))
    return g * (_normal_cdf(x) + x * density)


def slice_backward(g: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int) -> Tensor:
    """g among zeros, `step` apart. Only pads; PyTorch's scattering takes a dimension to the front and back again."""
    size = sizes[dim]
    start = min(max(start + size if start < 0 else start, 0), size)
    dim %= g.dim()
    behind = [0, 0] * (g.dim() - 1 - dim)  # padding of the dimensions after this one
    if step > 1 and not behind:  # single numbers take 8 times as long to pad as to multiply by [1, 0]
        g = (g.unsqueeze(-1) @ (torch.arange(step) == 0).to(g.dtype)[None]).flatten(dim, dim + 1)
    elif step > 1:
        g = aten.constant_pad_nd(g.unsqueeze(dim + 1), [*behind, 0, step - 1]).flatten(dim, dim + 1)
    return aten.constant_pad_nd(g, [*behind, start, size - start - g.shape[dim]])  # type: ignore[no-any-return]


def weight_norm_backward(gw: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Of w = v * g / |v|, norms over all dimensions but `dim`."""
    axes = [axis for axis in range(v.dim()) if axis != dim]
    gg = (gw * v).sum(axes, keepdim=True) / norms
    return (gw - v * (gg / norms)) * (g / norms), gg


def avg_pool2d_backward(
    g: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Average pooling is linear and the same for each row and column: g -> A_h^T g A_w, with fixed small matrices."""
    stride = list(stride) or list(kernel)
    height, width = x.shape[-2:]
    window = kernel[0] * kernel[1]
    if divisor is None and not ceil_mode and (count_include_pad or not any(padding)):
        divisor = window
    rows = _windows(height, g.shape[-2], kernel[0], stride[0], padding[0])
    columns = _windows(width, g.shape[-1], kernel[1], stride[1], padding[1])
    if divisor is not None:
        g = g / divisor
    else:
        sizes = [
            _counts(n, out, k, s, p, count_include_pad)
            for n, out, k, s, p in zip((height, width), g.shape[-2:], kernel, stride, padding, strict=True)
        ]
        g = g / (sizes[0][:, None] * sizes[1][None, :])
    return rows.t() @ g @ columns


def adaptive_avg_pool2d(x: Tensor, size: Sequence[int]) -> Tensor:
    """Means of windows that differ in size: x -> A_h x A_w^T, or an ordinary average pool where sizes divide."""
    height, width = x.shape[-2:]
    if list(size) == [1, 1]:
        return x.mean([-2, -1], keepdim=True)
    if height % size[0] == 0 and width % size[1] == 0:
        return aten.avg_pool2d(x, [height // size[0], width // size[1]])  # type: ignore[no-any-return]
    return _adaptive(height, size[0]) @ x @ _adaptive(width, size[1]).t()


def adaptive_avg_pool2d_backward(g: Tensor, x: Tensor) -> Tensor:
    """The transposed map of `adaptive_avg_pool2d`."""
    height, width = x.shape[-2:]
    if g.shape[-2:] == (1, 1):
        return (g / (height * width)).expand(x.shape)
    return _adaptive(height, g.shape[-2]).t() @ g @ _adaptive(width, g.shape[-1])


def avg_pool3d_backward(
    g: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """As in two dimensions: one small fixed matrix per axis."""
    stride = list(stride) or list(kernel)
    sizes = list(zip(x.shape[-3:], g.shape[-3:], kernel, stride, padding, strict=True))
    if divisor is not None:
        g = g / divisor
    else:
        for axis, (n, out, k, s, p) in zip((-3, -2, -1), sizes, strict=True):
            g = g / _counts(n, out, k, s, p, count_include_pad).reshape(-1, *[1] * (-1 - axis))
    for axis, (n, out, k, s, p) in zip((-3, -2, -1), sizes, strict=True):
        g = (g.transpose(axis, -1) @ _windows(n, out, k, s, p)).transpose(axis, -1)
    return g


def copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """x with all its values replaced, which is the source alone: x may be an `empty`, which ONNX lacks."""
    return source.to(x.dtype).expand(x.shape)


def empty_like(x: Tensor, *, dtype: torch.dtype | None = None, **_options: object) -> Tensor:
    return torch.zeros_like(x, dtype=dtype)


def max_dim(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    """ONNX has the place of a maximum for numbers only."""
    if x.dtype != torch.bool:
        return NotImplemented
    values, places = aten.max.dim(x.to(torch.int32), dim, keepdim)
    return values.to(torch.bool), places


def index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    """ONNX scatters by int64 only."""
    if not any(index is not None and index.dtype == torch.int32 for index in indices):
        return NotImplemented
    wide = [index.long() if index is not None and index.dtype == torch.int32 else index for index in indices]
    return aten.index_put(x, wide, values, accumulate)


def _windows(n: int, out: int, kernel: int, stride: int, padding: int) -> Tensor:
    """[out, n] with 1 where an input position lies in an output's window."""
    start = torch.arange(out)[:, None] * stride - padding
    place = torch.arange(n)[None, :]
    return ((place >= start) & (place < start + kernel)).float()


def _counts(n: int, out: int, kernel: int, stride: int, padding: int, with_padding: bool) -> Tensor:
    """[out]: how many positions each window counts. Beyond the padded input (ceil_mode) nothing counts."""
    start = torch.arange(out) * stride - padding
    end = torch.clamp(start + kernel, max=n + padding)
    if not with_padding:
        start, end = torch.clamp(start, min=0), torch.clamp(end, max=n)
    return (end - start).float()


def _adaptive(n: int, out: int) -> Tensor:
    """[out, n]: row i averages positions floor(i*n/out) to ceil((i+1)*n/out)."""
    rows = []
    place = torch.arange(n)
    for i in range(out):
        start, end = i * n // out, math.ceil((i + 1) * n / out)
        rows.append(((place >= start) & (place < end)).float() / (end - start))
    return torch.stack(rows)


def _channel(v: Tensor, x: Tensor) -> Tensor:
    """[C] shaped so that it broadcasts against x [N, C, ...]."""
    return v.reshape(-1, *[1] * (x.dim() - 2))


OURS: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: convolution_backward,
    aten.native_batch_norm.default: native_batch_norm,
    aten._native_batch_norm_legit.default: _native_batch_norm_legit,
    aten._native_batch_norm_legit.no_stats: _native_batch_norm_no_stats,
    aten._native_batch_norm_legit_functional.default: batch_norm_functional,
    aten.native_batch_norm_backward.default: native_batch_norm_backward,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool2d_backward,
    aten.threshold_backward.default: threshold_backward,
    aten.native_layer_norm_backward.default: native_layer_norm_backward,
    aten.gelu.default: gelu,
    aten.gelu_backward.default: gelu_backward,
    aten.slice_backward.default: slice_backward,
    aten._weight_norm_interface_backward.default: weight_norm_backward,
    aten.avg_pool3d_backward.default: avg_pool3d_backward,
    aten.max.dim: max_dim,
    aten.index_put.default: index_put,
    aten.copy.default: copy,
    aten.empty_like.default: empty_like,
}
