"""Transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefl_exporter.zoo.entry import seeded


class EncoderBlock(nn.Module):
    """Self-attention and two linear layers, each after a LayerNorm and added to its input [batch, tokens, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        wide: Tensor = self.narrow(F.gelu(self.widen(self.norm2(x))))
        return x + wide


class ViT(nn.Module):
    """Square patches become tokens; a class token's last state gives the logits."""

    def __init__(self, image: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # [batch, places, width]
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return logits


@seeded
def vit(image: int = 32, width: int = 96, depth: int = 4) -> tuple[nn.Module, Tensor]:
    """A small ViT for CIFAR-10: patches of 4x4, width 96, 4 layers, 4 heads."""
    return ViT(image, 4, width, depth, 4), torch.zeros(1, 3, image, image)
