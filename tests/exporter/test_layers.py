"""Layer by layer: whole training steps of a small net agree with PyTorch. `export` proves it or raises ParityError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from edgefl_exporter import SGD, export

IMAGE = (2, 3, 9, 9)
ROW = (2, 8)


def image_net(*layers: nn.Module, width: int) -> nn.Module:
    """A convolution, the layers, a linear head: the layers get a gradient and pass one on."""
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), *layers, nn.Flatten(), nn.Linear(width, 5))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.shortcut = nn.Conv2d(6, 8, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) + self.shortcut(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


class After(nn.Module):
    """A linear layer, any function of its output and of a weight of its own, a linear head."""

    def __init__(self, function: Callable[..., torch.Tensor], width: int = 8, weight: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.body, self.function, self.head = nn.Linear(8, 8), function, nn.Linear(width, 5)
        self.weight = nn.Parameter(torch.randn(weight)) if weight else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        y = self.function(y) if self.weight is None else self.function(y, self.weight)
        return self.head(y.flatten(1))


class Sequence(nn.Module):
    """A row as a few time steps, a recurrent layer, a head that uses all its outputs."""

    def __init__(self, cell: nn.RNNBase, time: int = 4) -> None:
        super().__init__()
        self.inner, self.cell = nn.Linear(8 // time, 8), cell
        wide = (cell.proj_size or cell.hidden_size) * (2 if cell.bidirectional else 1)
        self.time, self.head = time, nn.Linear(2 * wide, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = self.inner(x.reshape(x.shape[0], self.time, -1))
        y, last = self.cell(steps if self.cell.batch_first else steps.transpose(0, 1))
        y = y if self.cell.batch_first else y.transpose(0, 1)
        hidden = last[0] if isinstance(last, tuple) else last
        return self.head(torch.cat([y.mean(1), y[:, -1]], 1)) + hidden.sum() * 0.01


class Attention(nn.Module):
    """[batch, 8] as two tokens of 4: any layer of (query, key, value)."""

    def __init__(self, layer: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.layer, self.head = nn.Linear(4, 8), layer, nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.inner(x.reshape(-1, 2, 4))
        return self.head(self.layer(tokens, tokens, tokens).flatten(1))


class MultiHead(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)  # type: ignore[arg-type]

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.attention(q, k, v)[0]


class Words(nn.Module):
    def __init__(self, embed: nn.Module, width: int) -> None:
        super().__init__()
        self.embed, self.head = embed, nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.gate(x))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.layer = nn.Linear(8, 6), nn.Bilinear(6, 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.inner(x), x)


class Checkpointed(nn.Module):
    """Recomputed in the backward pass by PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.ReLU())
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(checkpoint(self.body, self.inner(x), use_reentrant=False))


def frozen(norm: nn.Module) -> nn.Module:
    """In evaluation mode by itself: its statistics are constants."""
    norm.register_buffer("running_mean", torch.randn(6))
    norm.register_buffer("running_var", torch.rand(6) + 0.5)
    return norm.requires_grad_(False).eval()


def series_net(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), *layers, nn.Flatten(), nn.Linear(width, 5))


def volume_net(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), *layers, nn.Flatten(), nn.Linear(width, 5))


SERIES = (2, 4, 12)
VOLUME = (2, 1, 4, 4, 4)

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)), ROW),
    "bilinear": (Bilinear, ROW),
    # convolutions
    "strided, dilated": (
        lambda: image_net(nn.Conv2d(6, 9, 3, 2, 1), nn.ReLU(), nn.Conv2d(9, 4, 2, dilation=2), width=36),
        IMAGE,
    ),
    "even kernel": (lambda: image_net(nn.Conv2d(6, 8, (2, 4), (1, 3), (0, 1)), width=192), IMAGE),
    "same padding": (lambda: image_net(nn.Conv2d(6, 4, 4, padding="same"), width=324), IMAGE),
    "circular padding": (lambda: image_net(nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), width=324), IMAGE),
    "reflect padding": (lambda: image_net(nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), width=324), IMAGE),
    "replicate padding": (
        lambda: image_net(nn.Conv2d(6, 4, 3, padding=1, padding_mode="replicate"), width=324),
        IMAGE,
    ),
    "zero pad, constant pad": (
        lambda: image_net(nn.ZeroPad2d((1, 0, 2, 1)), nn.ConstantPad2d(1, 0.5), width=6 * 14 * 12),
        IMAGE,
    ),
    "grouped": (lambda: image_net(nn.Conv2d(6, 9, 3, 2, 1, 1, 3), width=225), IMAGE),
    "depthwise, pointwise": (
        lambda: image_net(nn.Conv2d(6, 6, 3, 2, groups=6), nn.ReLU6(), nn.Conv2d(6, 4, 1), width=64),
        IMAGE,
    ),
    "depthwise, wider": (lambda: image_net(nn.Conv2d(6, 12, 3, padding=2, dilation=2, groups=6), width=972), IMAGE),
    "transposed": (lambda: image_net(nn.ConvTranspose2d(6, 4, 3, 2, 1, 1), nn.ReLU(), width=1296), IMAGE),
    "transposed, grouped": (lambda: image_net(nn.ConvTranspose2d(6, 4, 3, 2, 1, groups=2), width=1156), IMAGE),
    "transposed, dilated": (lambda: image_net(nn.ConvTranspose2d(6, 4, 3, 1, 0, dilation=2), width=676), IMAGE),
    "convolution 1d": (lambda: series_net(nn.Conv1d(6, 4, 3, 2, 1), nn.ReLU(), nn.Conv1d(4, 4, 2), width=20), SERIES),
    "convolution 1d, causal": (
        lambda: series_net(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(6, 4, 3, dilation=2), width=48),
        SERIES,
    ),
    "convolution 1d, depthwise": (
        lambda: series_net(nn.Conv1d(6, 6, 5, padding="same", groups=6, padding_mode="circular"), width=72),
        SERIES,
    ),
    "transposed 1d": (lambda: series_net(nn.ConvTranspose1d(6, 4, 4, 2, 1, groups=2, dilation=2), width=108), SERIES),
    "convolution 3d": (lambda: volume_net(nn.ReLU(), nn.Conv3d(2, 3, 2, 2), width=24), VOLUME),
    # pools
    "overlapping max pool": (lambda: image_net(nn.ReLU(), nn.MaxPool2d(3, 2, 1), width=150), IMAGE),
    "ceil max pool": (lambda: image_net(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), width=150), IMAGE),
    "dilated max pool": (lambda: image_net(nn.MaxPool2d(2, 2, dilation=2), width=96), IMAGE),
    "adaptive max pool": (lambda: image_net(nn.AdaptiveMaxPool2d(3), width=54), IMAGE),
    "uneven adaptive max pool": (lambda: image_net(nn.AdaptiveMaxPool2d(4), width=96), IMAGE),
    "max pool 1d": (lambda: series_net(nn.MaxPool1d(2), nn.MaxPool1d(3, 2, 1), width=18), SERIES),
    "ceil max pool 1d": (lambda: series_net(nn.MaxPool1d(5, ceil_mode=True), width=18), SERIES),
    "adaptive max pool 1d": (lambda: series_net(nn.AdaptiveMaxPool1d(1), width=6), SERIES),
    "max pool 3d": (lambda: volume_net(nn.MaxPool3d(2), width=16), VOLUME),
    "average pool": (lambda: image_net(nn.AvgPool2d(2), nn.ReLU(), width=96), IMAGE),
    "padded average pool": (
        lambda: image_net(nn.AvgPool2d(3, 2, 1, count_include_pad=False), width=150),
        IMAGE,
    ),
    "ceil average pool": (lambda: image_net(nn.AvgPool2d(2, ceil_mode=True), width=150), IMAGE),
    "average pool 1d": (lambda: series_net(nn.AvgPool1d(2), nn.AvgPool1d(3, 2, 1), width=18), SERIES),
    "average pool 3d": (lambda: volume_net(nn.AvgPool3d(2), width=16), VOLUME),
    "uneven adaptive pool": (lambda: image_net(nn.AdaptiveAvgPool2d(4), width=96), IMAGE),
    "adaptive pool 1d": (lambda: series_net(nn.AdaptiveAvgPool1d(5), width=30), SERIES),
    "adaptive pool 3d": (lambda: volume_net(nn.AdaptiveAvgPool3d(1), width=2), VOLUME),
    "power pool": (lambda: image_net(nn.Sigmoid(), nn.LPPool2d(2, 3), width=54), IMAGE),
    "power pool 1d": (lambda: series_net(nn.Sigmoid(), nn.LPPool1d(3, 2), width=36), SERIES),
    # normalisations
    "batch norm 1d": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)),
        ROW,
    ),
    "batch norm of series": (lambda: series_net(nn.BatchNorm1d(6), nn.ReLU(), width=72), SERIES),
    "batch norm 3d": (lambda: volume_net(nn.BatchNorm3d(2), nn.ReLU(), width=128), VOLUME),
    "batch norm, max pool": (
        lambda: image_net(nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), width=96),
        IMAGE,
    ),
    "batch norm, frozen": (lambda: image_net(frozen(nn.BatchNorm2d(6)), nn.ReLU(), width=486), IMAGE),
    "batch norm without weights": (lambda: image_net(nn.BatchNorm2d(6, affine=False), width=486), IMAGE),
    "batch norm without statistics": (
        lambda: image_net(nn.BatchNorm2d(6, track_running_stats=False), width=486),
        IMAGE,
    ),
    "batch norm, cumulative average": (lambda: image_net(nn.BatchNorm2d(6, momentum=None), width=486), IMAGE),
    "group norm, silu": (lambda: image_net(nn.GroupNorm(2, 6), nn.SiLU(), width=486), IMAGE),
    "layer norm, gelu": (
        lambda: nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5)),
        ROW,
    ),
    "layer norm of images": (lambda: image_net(nn.LayerNorm([6, 9, 9]), width=486), IMAGE),
    "instance norm": (lambda: image_net(nn.InstanceNorm2d(6, affine=True), nn.ReLU(), width=486), IMAGE),
    "instance norm with statistics": (
        lambda: image_net(nn.InstanceNorm2d(6, track_running_stats=True), width=486),
        IMAGE,
    ),
    "instance norm 1d": (lambda: series_net(nn.InstanceNorm1d(6), width=72), SERIES),
    "rms norm": (lambda: nn.Sequential(nn.Linear(8, 16), nn.RMSNorm(16), nn.Linear(16, 5)), ROW),
    "local response norm": (lambda: image_net(nn.LocalResponseNorm(3), width=486), IMAGE),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 16)), nn.Tanh(), nn.Linear(16, 5)),
        ROW,
    ),
    "spectral norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16)), nn.Tanh(), nn.Linear(16, 5)),
        ROW,
    ),
    # dropout and noise
    "dropout": (lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 5)), ROW),
    "dropout in place": (lambda: nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.3, inplace=True), nn.Linear(32, 5)), ROW),
    "dropout 1d, 2d": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.Dropout2d(0.4), nn.Flatten(2), nn.Dropout1d(0.2), nn.Flatten(), nn.Linear(294, 5)
        ),
        IMAGE,
    ),
    "dropout 3d": (lambda: volume_net(nn.Dropout3d(0.4), width=128), VOLUME),
    "alpha dropout": (
        lambda: nn.Sequential(nn.Linear(8, 32), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(32, 5)),
        ROW,
    ),
    "feature alpha dropout": (lambda: image_net(nn.FeatureAlphaDropout(0.2), width=486), IMAGE),
    "stochastic depth": (
        lambda: After(lambda y: y + torch.relu(y) * y.new_empty(y.shape[0], 1).bernoulli_(0.8).div_(0.8)),
        ROW,
    ),
    "noise": (lambda: After(lambda y: y * torch.rand_like(y) + 0.1 * torch.randn_like(y)), ROW),
    "normal, uniform in place": (
        lambda: After(lambda y: y + y.new_empty(8).normal_() + torch.zeros(8).uniform_()),
        ROW,
    ),
    "random integers": (lambda: After(lambda y: y * torch.randint(0, 3, (8,))), ROW),
    "gumbel softmax": (lambda: After(lambda y: nn.functional.gumbel_softmax(y, tau=0.5)), ROW),
    "dropout in a checkpoint": (lambda: Checkpointed(), ROW),
    # recurrent
    "gru": (lambda: Sequence(nn.GRU(8, 6, batch_first=True)), ROW),
    "gru, both directions, two layers": (lambda: Sequence(nn.GRU(8, 6, 2, bidirectional=True)), ROW),
    "lstm": (lambda: Sequence(nn.LSTM(8, 6, batch_first=True)), ROW),
    "lstm, both directions, two layers, dropout": (
        lambda: Sequence(nn.LSTM(8, 6, 2, bidirectional=True, dropout=0.2)),
        ROW,
    ),
    "lstm with projection": (lambda: Sequence(nn.LSTM(8, 6, proj_size=3)), ROW),
    "rnn": (lambda: Sequence(nn.RNN(8, 6, batch_first=True)), ROW),
    "rnn, relu, both directions": (lambda: Sequence(nn.RNN(8, 6, nonlinearity="relu", bidirectional=True)), ROW),
    # attention
    "dot product attention": (lambda: Attention(nn.functional.scaled_dot_product_attention), ROW),
    "causal attention": (
        lambda: Attention(lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)),
        ROW,
    ),
    "attention with dropout": (
        lambda: Attention(lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.2)),
        ROW,
    ),
    "multi-head attention": (lambda: Attention(MultiHead()), ROW),
    "multi-head attention with dropout": (lambda: Attention(MultiHead(dropout=0.3)), ROW),
    "transformer encoder layer": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 4)),
            nn.Linear(4, 8),
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu"),
            nn.Flatten(),
            nn.Linear(16, 5),
        ),
        ROW,
    ),
    # shapes and places
    "residual, global pool": (lambda: image_net(Residual(), nn.AdaptiveAvgPool2d(1), width=8), IMAGE),
    "squeeze and excite": (lambda: image_net(SqueezeExcite(), width=486), IMAGE),
    "tied weights": (Tied, ROW),
    "pixel shuffle": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.Flatten(), nn.Linear(392, 5)),
        IMAGE,
    ),
    "pixel unshuffle": (lambda: image_net(nn.PixelUnshuffle(3), width=486), IMAGE),
    "channel shuffle": (lambda: image_net(nn.ChannelShuffle(3), width=486), IMAGE),
    "nearest": (lambda: image_net(nn.Upsample(scale_factor=2), width=1944), IMAGE),
    "nearest, uneven": (lambda: image_net(nn.Upsample(size=(13, 12)), width=936), IMAGE),
    "bilinear upsample": (lambda: image_net(nn.Upsample(scale_factor=2, mode="bilinear"), width=1944), IMAGE),
    "bilinear, corners": (
        lambda: image_net(nn.Upsample(size=14, mode="bilinear", align_corners=True), width=1176),
        IMAGE,
    ),
    "bicubic": (lambda: image_net(nn.Upsample(scale_factor=2, mode="bicubic"), width=1944), IMAGE),
    "linear upsample": (lambda: series_net(nn.Upsample(scale_factor=2, mode="linear"), width=144), SERIES),
    "concat, split": (lambda: After(lambda y: torch.cat([*y.split([3, 5], 1), y.chunk(2, 1)[1]], 1), 12), ROW),
    "stack, unbind": (lambda: After(lambda y: torch.stack([y, y.tanh()], 2).unbind(2)[1]), ROW),
    "einsum": (lambda: After(lambda y, w: torch.einsum("bi,ij,bj->bij", y, w, y), 64, (8, 8)), ROW),
    "matmul of a vector": (lambda: After(lambda y, w: (y @ w).unsqueeze(1), 1, (8,)), ROW),
    "transposed matmul of a vector": (lambda: After(lambda y, w: (w @ y.t()).unsqueeze(1), 1, (8,)), ROW),
    "flatten, unflatten": (lambda: After(lambda y: y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1)), ROW),
    "roll, flip": (lambda: After(lambda y: y.roll(3, 1) + y.flip(1)), ROW),
    "slices with steps": (lambda: After(lambda y: y[:, 1::3], 3), ROW),
    "assignment to a slice": (lambda: After(assigned), ROW),
    "gather": (lambda: After(lambda y: y.gather(1, y.argsort(1).detach())), ROW),
    "index select": (lambda: After(lambda y: y.index_select(1, torch.tensor([7, 0, 0, 3])), 4), ROW),
    "index": (lambda: After(lambda y: y[:, [1, 5, 5]], 3), ROW),
    "index add": (lambda: After(lambda y: y.index_add(1, torch.tensor([0, 2, 2]), y[:, :3])), ROW),
    "scatter add": (
        lambda: After(
            lambda y: torch.zeros_like(y).scatter_add(1, torch.tensor([[0, 1, 1, 5, 5, 5, 7, 7]]).expand_as(y), y)
        ),
        ROW,
    ),
    "cumulative sum": (lambda: After(lambda y: y.cumsum(1)), ROW),
    "cumulative product": (lambda: After(lambda y: (1 + 0.1 * y).cumprod(1)), ROW),
    "cumulative maximum": (lambda: After(lambda y: y.cummax(1).values + torch.cummin(y, 1)[0]), ROW),
    "sort": (lambda: After(lambda y: y.sort(1).values), ROW),
    "topk": (lambda: After(lambda y: y.topk(3, 1).values, 3), ROW),
    "boolean mask": (lambda: After(lambda y: y[y.sum(1) > 0].sum(0, keepdim=True) + y), ROW),
    "max, min of a dimension": (lambda: After(lambda y: torch.stack([y.max(1).values, y.min(1)[0]], 1), 2), ROW),
    "amax, mean, std": (lambda: After(lambda y: torch.stack([y.amax(1), y.mean(1), y.std(1)], 1), 3), ROW),
    "where, masked fill": (
        lambda: After(lambda y: torch.where(y > 0, y, y * 2).masked_fill(y.abs() < 0.1, 0.5)),
        ROW,
    ),
    "triangles": (lambda: After(lambda y: (y.unsqueeze(2) * y.unsqueeze(1)).tril().triu(-3), 64), ROW),
    "one hot": (lambda: After(lambda y: y * nn.functional.one_hot(y.argmax(1), 8)), ROW),
    "norm": (lambda: After(lambda y: nn.functional.normalize(y) * y.norm(dim=1, keepdim=True)), ROW),
    "norm of order 1": (lambda: After(lambda y: y / y.norm(p=1, dim=1, keepdim=True)), ROW),
    "cosine similarity": (
        lambda: After(lambda y, w: nn.functional.cosine_similarity(y.unsqueeze(1), w, 2), 3, (3, 8)),
        ROW,
    ),
    "distances": (lambda: After(lambda y, w: torch.cdist(y, w), 3, (3, 8)), ROW),
    "logsumexp": (lambda: After(lambda y: y.reshape(-1, 4, 2).logsumexp(2), 4), ROW),
    "powers": (lambda: After(lambda y: y.square() + y.abs().sqrt() + y.abs().pow(1.5) + y**3), ROW),
    "trigonometry": (lambda: After(lambda y: y.sin() + y.cos() + torch.atan(y) + torch.sinh(y) + torch.erf(y)), ROW),
    "clamp, round": (lambda: After(lambda y: y.clamp(-0.5, 0.5) + y.round() + y.floor() + y.sign() * y), ROW),
    "prod": (lambda: After(lambda y: y.reshape(-1, 4, 2).prod(2), 4), ROW),
    "outer, batched matmul": (lambda: After(lambda y: torch.bmm(y.unsqueeze(2), y.unsqueeze(1)), 64), ROW),
    "softmax, log softmax": (lambda: After(lambda y: y.softmax(1) + y.log_softmax(1)), ROW),
    "unfold": (lambda: image_net(nn.Unfold(3, stride=3), width=486), IMAGE),
    "fold": (lambda: image_net(nn.Unfold(2, stride=1), nn.Fold((9, 9), 2), width=486), IMAGE),
    "unfold 1d": (lambda: After(lambda y: y.unfold(1, 4, 2), 12), ROW),
}
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky relu": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(),
    "elu": nn.ELU(),
    "celu": nn.CELU(0.7),
    "selu": nn.SELU(),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardtanh": nn.Hardtanh(),
    "gelu": nn.GELU(),
    "gelu, tanh form": nn.GELU("tanh"),
    "softplus": nn.Softplus(2.0),
    "softsign": nn.Softsign(),
    "sigmoid": nn.Sigmoid(),
    "log sigmoid": nn.LogSigmoid(),
    "tanh": nn.Tanh(),
    "tanhshrink": nn.Tanhshrink(),
    "softshrink": nn.Softshrink(0.2),
    "hardshrink": nn.Hardshrink(0.2),
    "threshold": nn.Threshold(0.1, -0.3),
    "softmin": nn.Softmin(1),
    "softmax": nn.Softmax(1),
    "glu": nn.Sequential(nn.GLU(), nn.Linear(4, 8)),
    "maxout": nn.Sequential(nn.Unflatten(1, (4, 2)), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(4, 8)),
}
LAYERS |= {
    name: (lambda layer=layer: nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 5)), ROW)  # type: ignore[misc]
    for name, layer in ACTIVATIONS.items()
}


def assigned(y: torch.Tensor) -> torch.Tensor:
    """A copy, changed in place."""
    z = y.clone()
    z[:, 2:4] = y[:, :2] * 2
    z[:, 0] += 1
    return z


@pytest.mark.parametrize("name", LAYERS)
def test_training_steps_equal_pytorch(name: str, tmp_path: Path) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(1)
    bundle = export(
        make(),
        torch.zeros(shape),
        out=tmp_path / "net.bundle",
        name="net",
        programs=("train",),
        optimizer=SGD(momentum=0.9, weight_decay=1e-3),
    )
    program = bundle.manifest.program("train")
    assert program.parity.checks["batches"] < 1e-4
    assert program.file.size_bytes < 64 * 1024  # weights are inputs; nothing large is baked in


TOKENS: dict[str, Callable[[], nn.Module]] = {
    "embedding": lambda: Words(nn.Embedding(11, 4), 24),
    "embedding with padding": lambda: Words(nn.Embedding(11, 4, padding_idx=1), 24),
    "bag of embeddings": lambda: Words(nn.EmbeddingBag(11, 4), 4),
    "one hot": lambda: Words(OneHot(), 66),
}


class OneHot(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(x.long(), 11).float()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.parametrize("name", TOKENS)
def test_token_layers_equal_pytorch(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = TOKENS[name]()
    net = net if dtype == torch.int64 or name == "one hot" else nn.Sequential(Long(), net)
    bundle = export(net, torch.zeros((2, 6), dtype=dtype), out=tmp_path / "net.bundle", name="net", programs=("train",))
    assert bundle.manifest.program("train").parity.checks["batches"] < 1e-4


class Long(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.long()
