"""LoRA: a small product of two matrices beside each frozen weight, so that only the small ones train and travel.

Hu et al. 2021, arXiv:2106.09685, section 4.1: W x + (alpha / rank) B A x, A random, B zero. Here alpha = 2 rank.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefl.errors import LoweringError

SCALE = 2.0  # alpha / rank
PARAMETERS = ("*lora_a", "*lora_b")


class LoraLinear(nn.Linear):
    """A Linear with `lora_a` [rank, in] and `lora_b` [out, rank] beside its weight."""

    lora_a: Tensor
    lora_b: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + SCALE * F.linear(F.linear(input, self.lora_a), self.lora_b)


class LoraConv1d(nn.Conv1d):
    """A Conv1d with a convolution to `rank` channels, lora_a, and one of width 1 from there, lora_b, beside it."""

    lora_a: Tensor
    lora_b: Tensor

    def forward(self, input: Tensor) -> Tensor:
        low = self._conv_forward(input, self.lora_a, None)
        return super().forward(input) + SCALE * F.conv1d(low, self.lora_b)


class LoraConv2d(nn.Conv2d):
    """A Conv2d with a convolution to `rank` channels, lora_a, and one of size 1x1 from there, lora_b, beside it."""

    lora_a: Tensor
    lora_b: Tensor

    def forward(self, input: Tensor) -> Tensor:
        low = self._conv_forward(input, self.lora_a, None)
        return super().forward(input) + SCALE * F.conv2d(low, self.lora_b)


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LoraLinear,
    nn.Conv1d: LoraConv1d,
    nn.Conv2d: LoraConv2d,
}


def add_adapters(module: nn.Module, rank: int) -> None:
    """Give every Linear and ungrouped Conv of `module` adapters, in place; the names of its own tensors stay.

    Raises LoweringError when there is none.
    """
    found = 0
    for child in list(module.modules()):
        kind = KINDS.get(type(child))
        if kind is None or getattr(child, "groups", 1) > 1:
            continue
        weight = child.weight
        assert isinstance(weight, Tensor)
        a = torch.empty(rank, *weight.shape[1:])
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        child.lora_a = nn.Parameter(a)
        child.lora_b = nn.Parameter(torch.zeros(weight.shape[0], rank, *[1] * (weight.dim() - 2)))
        child.__class__ = kind
        found += 1
    if not found:
        raise LoweringError(
            "the model has no Linear and no ungrouped Conv layer to adapt", hint="choose what to train with --train"
        )
