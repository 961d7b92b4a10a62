"""Our own operators: places where the form of the ONNX subgraph decides speed or correctness.

Each is declared here with its arithmetic in PyTorch (so that a traced graph can still be run), and translated to
standard ONNX operators in `translate.py`. No file we write contains them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("edgefl::conv_input_gradient", mutates_args=())
def conv_input_gradient(
    g: Tensor, x: Tensor, w: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """The gradient of a convolution's input: g [N, O, ...], x [N, I, ...] (only its shape), w [O, I/groups, ...]."""
    return _convolution_backward(g, x, w, stride, padding, dilation, groups, (True, False, False))[0]


@conv_input_gradient.register_fake
def _(g: Tensor, x: Tensor, w: Tensor, stride: object, padding: object, dilation: object, groups: int) -> Tensor:
    return g.new_empty(x.shape)


@torch.library.custom_op("edgefl::conv_weight_gradient", mutates_args=())
def conv_weight_gradient(
    g: Tensor, x: Tensor, w: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """The gradient of a convolution's weight: g [N, O, ...], x [N, I, ...], w (only its shape)."""
    return _convolution_backward(g, x, w, stride, padding, dilation, groups, (False, True, False))[1]


@conv_weight_gradient.register_fake
def _(g: Tensor, x: Tensor, w: Tensor, stride: object, padding: object, dilation: object, groups: int) -> Tensor:
    return g.new_empty(w.shape)


@torch.library.custom_op("edgefl::max_pool", mutates_args=())
def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    """The maximum of each window and where it was: an index into x as one long row (torch: into each plane)."""
    y, places = F.max_pool2d_with_indices(x, [*kernel], [*stride], [*padding], [*dilation], ceil_mode)
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], 1, 1)
    return y, places + planes * (x.shape[2] * x.shape[3])


@max_pool.register_fake
def _(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    y, places = torch.ops.aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
    return y, places


@torch.library.custom_op("edgefl::max_pool_gradient", mutates_args=())
def max_pool_gradient(
    g: Tensor,
    places: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    overlapping: bool,
) -> Tensor:
    """Each element of g added at its place in a tensor of zeros like x (only its shape is used)."""
    return torch.zeros(x.numel()).scatter_add(0, places.reshape(-1), g.reshape(-1)).reshape(x.shape)


@max_pool_gradient.register_fake
def _(
    g: Tensor, places: Tensor, x: Tensor, kernel: object, stride: object, padding: object, overlapping: bool
) -> Tensor:
    return g.new_empty(x.shape)


@torch.library.custom_op("edgefl::relu_gradient", mutates_args=())
def relu_gradient(g: Tensor, y: Tensor) -> Tensor:
    """g where y > 0, else 0; y >= 0 is the ReLU's output."""
    return torch.where(y > 0, g, 0.0)


@relu_gradient.register_fake
def _(g: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(g)


@torch.library.custom_op("edgefl::scale_shift", mutates_args=())
def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift per channel: x [N, C, ...], scale and shift [C]."""
    shape = (-1, *[1] * (x.dim() - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


@scale_shift.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.empty_like(x)


def _convolution_backward(
    g: Tensor,
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    none = [0] * len(stride)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        g, x, w, None, stride, padding, dilation, False, none, groups, wanted
    )
    return gradients
