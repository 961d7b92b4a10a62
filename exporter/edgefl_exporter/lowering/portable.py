"""Functions of PyTorch whose own decomposition cannot be lowered, or not well, in another form while tracing.

The oracle always runs PyTorch's own.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgefl.errors import LoweringError
from edgefl_exporter.lowering.recurrent import recurrent
from edgefl_exporter.lowering.refusal import calling_line
from edgefl_exporter.torch_internals import (
    AnyNorm,
    pack_padded_sequence,
)


class Portable(TorchFunctionMode):
    """While the block runs, functions in REPLACED, and BatchNorms that average cumulatively, take their other form."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        norms = [child for child in module.modules() if isinstance(child, AnyNorm)]
        self._cumulative = [norm for norm in norms if norm.track_running_stats and norm.momentum is None]

    def __enter__(self) -> Portable:
        for norm in self._cumulative:
            norm.forward = functools.partial(_cumulative_batch_norm, norm)
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for norm in self._cumulative:
            del norm.forward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replaced = REPLACED.get(func)
        if replaced is None:
            return func(*args, **(kwargs or {}))
        return replaced(func, *args, **(kwargs or {}))


def _cumulative_batch_norm(norm: Any, x: Tensor) -> Tensor:
    """PyTorch reads 1/num_batches_tracked, the factor of the newest batch, out of a tensor; here it stays one."""
    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    mean, variance = torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var)
    y = F.batch_norm(x, mean, variance, norm.weight, norm.bias, True, 1.0, norm.eps)
    norm.num_batches_tracked.add_(1)
    factor = 1.0 / norm.num_batches_tracked.to(torch.float32)
    for running, batch in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.copy_(batch * factor + running * (1 - factor))
    return y


def _distances(default: Any, a: Tensor, b: Tensor, p: float = 2.0, compute_mode: object = None) -> Tensor:
    """All pairs; PyTorch chooses by the number of rows, which is the batch, between this and a product."""
    difference: Tensor = a.unsqueeze(-2) - b.unsqueeze(-3)
    return difference.norm(p, -1)  # type: ignore[no-any-return]


def _bag(default: Any, tokens: Tensor, weight: Tensor, offsets: Tensor | None = None, **options: Any) -> Tensor:
    """An embedding per token, reduced over each row of tokens."""
    plain = all(not options.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse", "include_last_offset"))
    mode, weights, padding = options.get("mode", "mean"), options.get("per_sample_weights"), options.get("padding_idx")
    if tokens.dim() != 2 or offsets is not None or not plain or padding is not None:
        return default(tokens, weight, offsets, **options)  # type: ignore[no-any-return]
    found = F.embedding(tokens, weight)
    if mode == "max":
        return found.amax(1)
    if weights is not None:
        found = found * weights.unsqueeze(-1)
    return found.sum(1) if mode == "sum" else found.mean(1)


def _bilinear(default: Any, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = torch.einsum("...i,oij,...j->...o", a, weight, b)
    return y if bias is None else y + bias


def _pad(default: Any, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Replication as a concatenation: its backward pass is then slices and sums."""
    if mode != "replicate":
        return default(x, pad, mode, value)  # type: ignore[no-any-return]
    for axis, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
        first, last = x.narrow(-axis, 0, 1), x.narrow(-axis, x.shape[-axis] - 1, 1)
        x = torch.cat([*[first] * before, x, *[last] * after], -axis)
    return x


def _adaptive_max_pool(default: Any, x: Tensor, size: int | Sequence[int], return_indices: bool = False) -> Any:
    """Windows that differ in size, one by one; the gradient goes to the first maximum, as in PyTorch."""
    given = [size, size] if isinstance(size, int) else list(size)
    rows, columns = (n if out is None else out for n, out in zip(x.shape[-2:], given, strict=True))
    if return_indices or (x.shape[-2] % rows == 0 and x.shape[-1] % columns == 0):
        return default(x, size, return_indices)
    found = [
        x[..., top:bottom, left:right].flatten(-2).max(-1).values
        for top, bottom in _spans(x.shape[-2], rows)
        for left, right in _spans(x.shape[-1], columns)
    ]
    return torch.stack(found, -1).reshape(*x.shape[:-2], rows, columns)


def _spans(n: int, out: int) -> list[tuple[int, int]]:
    return [(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]


def _max_pool3d(
    default: Any,
    x: Tensor,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of one shifted slice per place of the window; the gradient goes to the first, as in PyTorch."""
    if ceil_mode or return_indices:
        return default(x, kernel, stride, padding, dilation, ceil_mode)
    k, p, d = _three(kernel), _three(padding), _three(dilation)
    s = _three(stride) if stride else k
    x = F.pad(x, [n for pad in reversed(p) for n in (pad, pad)], value=-torch.inf) if any(p) else x
    outs = [(n - dd * (kk - 1) - 1) // ss + 1 for n, kk, ss, dd in zip(x.shape[-3:], k, s, d, strict=True)]
    shifted = []
    for place in itertools.product(*map(range, k)):
        starts = [i * dd for i, dd in zip(place, d, strict=True)]
        ends = [a + (out - 1) * ss + 1 for a, out, ss in zip(starts, outs, s, strict=True)]
        a, b, c = (slice(start, end, ss) for start, end, ss in zip(starts, ends, s, strict=True))
        shifted.append(x[..., a, b, c])
    return torch.stack(shifted, -1).max(-1).values


def _three(value: int | Sequence[int]) -> list[int]:
    return [value] * 3 if isinstance(value, int) else list(value)


def _cumulative_extreme(largest: bool) -> Callable[..., Any]:
    """cummax or cummin: the extreme of each element and all before it, over a triangle; of equal ones the last."""

    def function(default: Any, x: Tensor, dim: int) -> Any:
        rows = x.movedim(dim, -1)
        n = rows.shape[-1]
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        triangle = rows.unsqueeze(-2).expand(*rows.shape, n).masked_fill(later, -torch.inf if largest else torch.inf)
        backwards = triangle.flip(-1)
        found = backwards.max(-1) if largest else backwards.min(-1)
        kind = torch.return_types.cummax if largest else torch.return_types.cummin
        return kind((found[0].movedim(-1, dim), (n - 1 - found[1]).movedim(-1, dim)))

    return function


def _packed(default: Any, *_args: Any, **_kwargs: Any) -> Any:
    line = calling_line(sys._getframe(), None)
    raise LoweringError(
        f"packed sequences ({line}) cannot be lowered: their sizes depend on values",
        hint="give the padded batch to the layer, and pick each last step with gather or a mask",
    )


def _recurrent(kind: str) -> Callable[..., Any]:
    return lambda default, *args: recurrent(kind, default, *args)


REPLACED: dict[Any, Callable[..., Any]] = {
    torch.cdist: _distances,
    F.embedding_bag: _bag,
    F.pad: _pad,
    F.adaptive_max_pool2d: _adaptive_max_pool,
    torch.cummax: _cumulative_extreme(True),
    torch.cummin: _cumulative_extreme(False),
    Tensor.cummax: _cumulative_extreme(True),
    Tensor.cummin: _cumulative_extreme(False),
    pack_padded_sequence: _packed,
    torch.bilinear: _bilinear,
    torch.max_pool3d: _max_pool3d,
    F.max_pool3d: _max_pool3d,
    torch.lstm: _recurrent("lstm"),
    torch.gru: _recurrent("gru"),
    torch.rnn_tanh: _recurrent("rnn_tanh"),
    torch.rnn_relu: _recurrent("rnn_relu"),
}
