"""Models of kinds that nobody listed, small but whole: each trains as in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefl_exporter import SGD, export


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(tokens, 8), nn.GELU(), nn.Linear(8, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).mT).mT
        return x + self.channels(self.norms[1](x))


class Mixer(nn.Module):
    """MLP-Mixer: patches, token mixing, channel mixing."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block, self.head = nn.Conv2d(3, 6, 4, 4), MixerBlock(4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patches(x).flatten(2).mT).mean(1))


class GatedMlp(nn.Module):
    """gMLP: half of the channels gates the other half through a product over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(4, 12), nn.LayerNorm(6), nn.Linear(6, 4)
        self.places, self.head = nn.Conv1d(6, 6, 1), nn.Linear(24, 5)
        nn.init.ones_(self.places.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.inner(x.mT)).chunk(2, -1)  # [batch, 6, 6]
        return self.head((x.mT + self.outer(u * self.places(self.norm(v)))).flatten(1))


class Tcn(nn.Module):
    """Dilated causal convolutions with weight normalisation, chomped on the right."""

    def __init__(self) -> None:
        super().__init__()
        weight_norm = nn.utils.parametrizations.weight_norm
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv1d(4, 4, 2, padding=dilation, dilation=dilation)) for dilation in (1, 2)
        )
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + self.dropout(F.relu(conv(x)[..., : x.shape[-1]]))
        return self.head(x[:, :, -1])


class DenseBlock(nn.Module):
    """DenseNet: every layer sees all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(4 + 2 * i), nn.ReLU(), nn.Conv2d(4 + 2 * i, 2, 3, padding=1)) for i in range(2)
        )
        self.transition = nn.Sequential(nn.Conv2d(8, 4, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(self.transition(torch.cat(found, 1)).flatten(1))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.five, self.pooled = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 5, padding=2), nn.Conv2d(3, 2, 1)
        self.three = nn.Sequential(nn.Conv2d(3, 2, (1, 3), padding=(0, 1)), nn.Conv2d(2, 2, (3, 1), padding=(1, 0)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.one(x), self.three(x), self.five(x), self.pooled(F.max_pool2d(x, 3, 1, 1))]
        return self.head(torch.cat(branches, 1).relu().mean((2, 3)))


class Sinc(nn.Module):
    """SincNet: band-pass filters from two trained frequencies each."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.band = nn.Parameter(torch.tensor([0.05, 0.1, 0.2])), nn.Parameter(torch.full((3,), 0.1))
        self.register_buffer("window", torch.hamming_window(9))
        self.register_buffer("time", torch.arange(-4, 5).float(), persistent=False)
        self.head = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low.abs().unsqueeze(1)
        high = (low + self.band.abs().unsqueeze(1)).clamp(max=0.5)
        filters = 2 * high * torch.sinc(2 * high * self.time) - 2 * low * torch.sinc(2 * low * self.time)
        y = F.conv1d(x[:, :1], (filters * self.window).unsqueeze(1), padding=4)
        return self.head(torch.log1p(y.abs()).mean(-1))


class Capsules(nn.Module):
    """Routing by agreement, three rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(4, 5, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        votes = torch.einsum("nci,cjoi->ncjo", x.reshape(-1, 4, 4), self.weight[:, :, :, :4])  # [N, 4, 5, 3]
        agreement = votes.new_zeros(votes.shape[:3])
        for _ in range(3):
            total = (agreement.softmax(2).unsqueeze(-1) * votes).sum(1)
            square = total.square().sum(-1, keepdim=True)
            capsule = square / (1 + square) * total / (square + 1e-6).sqrt()
            agreement = agreement + (votes * capsule.unsqueeze(1)).sum(-1)
        return (capsule.square().sum(-1) + 1e-6).sqrt()


class Film(nn.Module):
    """Feature-wise modulation of an image by its own summary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.condition, self.head = nn.Conv2d(3, 4, 3), nn.Linear(3, 8), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self.condition(x.mean((2, 3))).chunk(2, 1)
        return self.head(F.relu(self.conv(x) * (1 + gamma[:, :, None, None]) + beta[:, :, None, None]).amax((2, 3)))


class GraphConvolution(nn.Module):
    """Two rounds over a fixed ring of eight nodes."""

    def __init__(self) -> None:
        super().__init__()
        ring = torch.eye(8) + torch.eye(8).roll(1, 0) + torch.eye(8).roll(-1, 0)
        self.register_buffer("adjacency", ring / 3)
        self.first, self.second, self.head = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        nodes = x.reshape(-1, 8, 2)
        nodes = F.elu(self.first(self.adjacency @ nodes))
        return self.head(F.elu(self.second(self.adjacency @ nodes)).mean(1))


class GraphAttention(nn.Module):
    """Attention along the edges of a fixed graph, others masked with -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.eye(8).bool() | torch.eye(8).roll(1, 0).bool())
        self.value, self.a, self.b, self.head = nn.Linear(2, 6), nn.Linear(6, 1), nn.Linear(6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.value(x.reshape(-1, 8, 2))
        scores = F.leaky_relu(self.a(nodes) + self.b(nodes).mT, 0.2)
        weights = scores.masked_fill(~self.edges, float("-inf")).softmax(-1)
        return self.head((weights @ nodes).mean(1))


class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = self.each(x.reshape(-1, 4, 4))
        return self.head(torch.cat([found.sum(1), found.logsumexp(1)], 1))


class PointNet(nn.Module):
    """A learned 3x3 alignment, shared layers, the maximum over points."""

    def __init__(self) -> None:
        super().__init__()
        self.align, self.each, self.head = nn.Linear(3, 9), nn.Conv1d(3, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        points = x.flatten(2)[:, :, :10]  # [N, 3, 10]
        turned = (self.align(points.amax(2)).reshape(-1, 3, 3) + torch.eye(3)) @ points
        return self.head(F.relu(self.each(turned)).max(2)[0])


class Perceiver(nn.Module):
    """A few learned queries read the input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(2, 8))
        self.inner = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.inner(x.reshape(-1, 4, 4))
        latent = self.latent.expand(x.shape[0], -1, -1)
        for _ in range(2):
            latent = latent + self.attention(self.norm(latent), tokens, tokens, need_weights=False)[0]
        return self.head(latent.flatten(1))


class KolmogorovArnold(nn.Module):
    """Each edge a trained sum of radial basis functions and a SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, 5))
        self.spline, self.base = nn.Parameter(0.1 * torch.randn(5, 16, 5)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2))  # [N, 16, 5]
        return self.base(F.silu(x)) + torch.einsum("nib,oib->no", basis, self.spline)


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 32) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            value, gate = layer(x).chunk(2, 1)
            x = torch.lerp(x, torch.tanh(value), torch.sigmoid(gate))
        return self.head(x)


class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(16, 16) for _ in range(2)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(3.0 * layer(x))
        return self.head(x)


class TuringMachine(nn.Module):
    """A controller that writes to and reads from a small memory by content, four steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.key, self.erase, self.add = nn.GRUCell(8, 8), *(nn.Linear(8, 4) for _ in range(3))
        self.memory, self.head = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.memory.repeat(x.shape[0], 1, 1)
        h, read = x.new_zeros(x.shape[0], 8), x.new_zeros(x.shape[0], 4)
        for item in x.reshape(-1, 4, 4).unbind(1):
            h = self.cell(torch.cat([item, read], 1), h)
            where = F.softmax(5 * F.cosine_similarity(self.key(h).unsqueeze(1), memory, 2), 1).unsqueeze(2)
            memory = memory * (1 - where * self.erase(h).sigmoid().unsqueeze(1)) + where * self.add(h).unsqueeze(1)
            read = (where * memory).sum(1)
        return self.head(read)


class Wavelet(nn.Module):
    """Fixed Haar filters in buffers, two levels, trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("haar", torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]]) / math.sqrt(2))
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        levels, low = [], x
        for _ in range(2):
            both = F.conv1d(low.reshape(-1, 1, low.shape[-1]), self.haar, stride=2)
            both = both.reshape(x.shape[0], -1, 2, both.shape[-1])
            low, high = both.unbind(2)
            levels.append(high.flatten(1))
        return self.head(F.softshrink(torch.cat([low.flatten(1), *levels], 1)[:, :48], 0.1))


class HyperNetwork(nn.Module):
    """One layer gives the weights of another, per example."""

    def __init__(self) -> None:
        super().__init__()
        self.maker, self.head = nn.Linear(16, 8 * 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.maker(x).view(-1, 8, 8) / 8
        return self.head(torch.tanh(torch.bmm(weights, x[:, :8].unsqueeze(2)).squeeze(2)))


class WeightTied(nn.Module):
    """One block six times, and an autoencoder's transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.code, self.head = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(6):
            x = x + 0.1 * torch.tanh(self.block(x))
        return self.head(F.linear(self.code(x), self.code.weight.t()))


class Experts(nn.Module):
    """Softly gated experts, the best two kept."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.gate = nn.ModuleList(nn.Linear(16, 5) for _ in range(4)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        lowest = scores.topk(2, 1).values[:, -1:]
        gates = scores.masked_fill(scores < lowest, float("-inf")).softmax(1)
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return torch.einsum("ne,neo->no", gates, outputs)


class Ode(nn.Module):
    """Four Runge-Kutta steps of a trained vector field."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = nn.Sequential(nn.Linear(17, 16), nn.Tanh(), nn.Linear(16, 16)), nn.Linear(16, 5)

    def f(self, t: float, x: Tensor) -> Tensor:
        return self.field(torch.cat([x, torch.full_like(x[:, :1], t)], 1))

    def forward(self, x: Tensor) -> Tensor:
        h = 0.25
        for i in range(4):
            a = self.f(i * h, x)
            b = self.f(i * h + h / 2, x + h / 2 * a)
            c = self.f(i * h + h / 2, x + h / 2 * b)
            d = self.f(i * h + h, x + h * c)
            x = x + h / 6 * (a + 2 * b + 2 * c + d)
        return self.head(x)


class Quantiles(nn.Module):
    """Outputs that cannot cross: a first one and positive increments."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.cat([y[:, :1], y[:, :1] + F.softplus(y[:, 1:]).cumsum(1)], 1)


class Swin(nn.Module):
    """Attention inside shifted windows: roll, partition, attend with a trained bias and a mask, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.qkv, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 24), nn.Linear(8, 5)
        self.bias = nn.Parameter(torch.zeros(16, 16))
        place = torch.arange(4).roll(-2) // 2
        region = (place[:, None] * 2 + place[None, :]).flatten()
        self.register_buffer("mask", torch.where(region[:, None] == region[None, :], 0.0, -100.0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x[:, :, :8, :8]).permute(0, 2, 3, 1)  # [N, 4, 4, 8]
        shifted = torch.roll(y, (-2, -2), (1, 2)).reshape(-1, 16, 8)
        q, k, v = self.qkv(shifted).view(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias + self.mask)
        z = torch.roll(z.transpose(1, 2).reshape(-1, 4, 4, 8), (2, 2), (1, 2))
        return self.head((y + z).mean((1, 2)))


class Shuffle(nn.Module):
    """ShuffleNet's unit: split, depthwise, join, shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.branch = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        y = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Ghost(nn.Module):
    """GhostNet: cheap depthwise copies of few features."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.primary(x))
        return self.head(F.hardswish(torch.cat([y, self.cheap(y)], 1)).mean((-1, -2)))


class SeResNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.squeeze = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 8), nn.Sigmoid())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        y = y * self.squeeze(y.mean((2, 3)))[:, :, None, None]
        y += x
        return self.head(y.relu_().mean((2, 3)))


class Network(nn.Module):
    """Network in network: 1x1 convolutions and a global average instead of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Dropout2d(0.2), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class HandWritten(nn.Module):
    """A peephole cell in a Python loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.peep = nn.Linear(4, 24), nn.Linear(6, 24, bias=False), nn.Parameter(torch.randn(3, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], 6)
        for t in range(4):
            i, f, g, o = (self.x(x.reshape(-1, 4, 4)[:, t]) + self.h(h)).split(6, 1)
            i, f = torch.sigmoid(i + self.peep[0] * c), torch.sigmoid(f + self.peep[1] * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + self.peep[2] * c) * torch.tanh(c)
        return self.head(h)


class LanguageModel(nn.Module):
    """A small transformer whose output layer is its embedding; the next token after the last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(7, 8), nn.Parameter(0.1 * torch.randn(6, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.register_buffer("mask", torch.triu(torch.full((6, 6), float("-inf")), 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.block(self.embed(x) * math.sqrt(8) + self.place, src_mask=self.mask)
        return F.linear(hidden[:, -1], self.embed.weight)


class Rotary(nn.Module):
    """Rotary positions, grouped queries, RMSNorm, SwiGLU: one block of a current language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 8), nn.RMSNorm(8)
        self.q, self.kv, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 24), nn.Linear(12, 8)
        angle = torch.arange(6)[:, None] * 10_000 ** (-torch.arange(0, 4, 2) / 4)[None, :]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self.head = nn.Linear(8, 5)

    def turn(self, x: Tensor) -> Tensor:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], -1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        z = self.norm(y)
        q = self.turn(self.q(z).view(-1, 6, 2, 4).transpose(1, 2))
        k, v = self.kv(z).view(-1, 6, 1, 8).transpose(1, 2).chunk(2, -1)
        k = self.turn(k).repeat_interleave(2, 1)
        z = F.scaled_dot_product_attention(q, k, v.repeat_interleave(2, 1), is_causal=True)
        y = y + z.transpose(1, 2).reshape(-1, 6, 8)
        gate, value = self.up(self.norm(y)).chunk(2, -1)
        return self.head((y + self.down(F.silu(gate) * value))[:, -1])


class StateSpace(nn.Module):
    """A diagonal linear recurrence by a product with a matrix of powers."""

    def __init__(self) -> None:
        super().__init__()
        self.decay, self.inner, self.head = nn.Parameter(torch.rand(4)), nn.Linear(4, 4), nn.Linear(4, 5)
        lag = (torch.arange(12)[:, None] - torch.arange(12)[None, :]).float()
        self.register_buffer("lag", lag)

    def forward(self, x: Tensor) -> Tensor:
        log = -F.softplus(self.decay)
        kernel = torch.where(self.lag >= 0, torch.exp(log[:, None, None] * self.lag.clamp(min=0)), 0.0)  # [4, T, T]
        return self.head(torch.einsum("cts,nsc->ntc", kernel, self.inner(x.mT))[:, -1])


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        y = self.up(F.relu(self.deep(skip)))[..., : skip.shape[-2], : skip.shape[-1]]
        return self.out(torch.cat([skip, y], 1)).mean((2, 3))


class Tabular(nn.Module):
    """Token ids and numbers in one row of integers: embeddings for some columns, a scale for others."""

    def __init__(self) -> None:
        super().__init__()
        self.colour, self.size = nn.Embedding(2, 3), nn.Embedding(2, 2)
        self.norm, self.layers = nn.BatchNorm1d(4), nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.norm(x[:, 2:].float() / 10)
        return self.layers(torch.cat([self.colour(x[:, 0]), self.size(x[:, 1]), numbers], 1))


class Prototypes(nn.Module):
    """Distances to trained class means, scaled by a trained temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.means, self.scale = (
            nn.Linear(16, 4),
            nn.Parameter(torch.randn(5, 4)),
            nn.Parameter(torch.ones(())),
        )

    def forward(self, x: Tensor) -> Tensor:
        return -self.scale.exp() * torch.cdist(F.normalize(self.body(x)), F.normalize(self.means))


class Equilibrium(nn.Module):
    """A fixed number of steps to a fixed point, gradients through the last one only."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.inject, self.head = nn.Linear(8, 8), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        injected = self.inject(x)
        with torch.no_grad():
            z = torch.zeros_like(injected)
            for _ in range(5):
                z = torch.tanh(0.5 * self.step(z) + injected)
        return self.head(torch.tanh(0.5 * self.step(z) + injected))


class StraightThrough(nn.Module):
    """A vector quantiser: the nearest code forward, the identity backward."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.codes, self.head = nn.Linear(16, 4), nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        nearest = (z.unsqueeze(1) - self.codes).square().sum(-1).argmin(1)
        code = F.embedding(nearest, self.codes)
        return self.head(z + (code - z).detach()) + 0.1 * (code - z.detach()).square().sum(1, keepdim=True)


IMAGE, ROW, SERIES, TOKENS = (2, 3, 9, 9), (2, 16), (2, 4, 12), (2, 6)

STRANGERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (Mixer, (2, 3, 8, 8)),
    (GatedMlp, (2, 4, 6)),
    (Tcn, SERIES),
    (DenseBlock, IMAGE),
    (Inception, IMAGE),
    (Sinc, SERIES),
    (Capsules, ROW),
    (Film, IMAGE),
    (GraphConvolution, ROW),
    (GraphAttention, ROW),
    (DeepSets, ROW),
    (PointNet, IMAGE),
    (Perceiver, ROW),
    (KolmogorovArnold, ROW),
    (Highway, ROW),
    (Siren, ROW),
    (TuringMachine, ROW),
    (Wavelet, SERIES),
    (HyperNetwork, ROW),
    (WeightTied, ROW),
    (Experts, ROW),
    (Ode, ROW),
    (Quantiles, ROW),
    (Swin, IMAGE),
    (Shuffle, IMAGE),
    (Ghost, IMAGE),
    (SeResNext, IMAGE),
    (Network, IMAGE),
    (HandWritten, ROW),
    (LanguageModel, TOKENS),
    (Rotary, TOKENS),
    (StateSpace, SERIES),
    (UNet, IMAGE),
    (Tabular, TOKENS),
    (Prototypes, ROW),
    (Equilibrium, ROW),
    (StraightThrough, ROW),
]


@pytest.mark.parametrize(("make", "shape"), STRANGERS, ids=[make.__name__ for make, _ in STRANGERS])
def test_a_stranger_trains_as_in_pytorch(make: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(2)
    example = torch.zeros(shape, dtype=torch.int64) if shape == TOKENS else torch.zeros(shape)
    bundle = export(
        make(), example, out=tmp_path / "m.bundle", name="m", programs=("train",), optimizer=SGD(momentum=0.9)
    )
    program = bundle.manifest.program("train")
    assert program.parity.checks["batches"] < 1e-4
    assert program.file.size_bytes < 64 * 1024
