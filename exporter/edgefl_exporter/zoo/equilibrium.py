"""Deep equilibrium classifiers: one contractive block, and what injects an image into it and reads it out.

The blocks are sparse coding with lateral inhibition: z <- relu(c (z - A^T A z) + u), whose solution balances what the
image says (u) against what other units already explain. |A|^2 <= 2, so all eigenvalues of I - A^T A are within -1..1
and the block contracts by c.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefl_exporter.programs.equilibrium import Equilibrium, equilibrium
from edgefl_exporter.zoo.entry import Made, seeded

CONTRACTION = 0.9  # c: a solve of a few dozen steps reaches 1e-3


def spectral_bound(matrix: Tensor) -> Tensor:
    """At least the greatest singular value of matrix [rows, columns], at most rows^(1/16) times that: a number [].

    From the Frobenius norm of the 4th power of M M^T (Gram iteration: Delattre et al. 2023, arXiv:2305.16173). Plain
    products, so it needs no buffer and has a gradient.
    """
    trace = matrix.square().sum()  # of M M^T
    power = matrix @ matrix.t() / trace  # so that nothing overflows
    for _ in range(2):
        power = power @ power
    return (trace * power.square().sum() ** 0.125).sqrt()


def inhibition(weight: Tensor) -> Tensor:
    """A^T A for the weight scaled to |A|^2 <= 2; made once for all steps of a solve."""
    a = weight * (2**0.5 / spectral_bound(weight))
    return a.t() @ a


class Inhibition(nn.Module):
    """relu(c (z - A^T A z) + u) for z and u [batch, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) * width**-0.5)

    def linear(self, z: Tensor) -> Tensor:
        """c (I - A^T A) z."""
        return CONTRACTION * (z - z @ inhibition(self.weight))

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.relu(self.linear(z) + u)


class ConvInhibition(nn.Module):
    """relu(c (D z - A^T A D z) + u) for z and u [batch, channels, height, width].

    D averages each channel over 3x3 places, with weights of its own that sum to 1, so |D| <= 1; A mixes the channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.randn(channels, channels) * channels**-0.5)
        self.places = nn.Parameter(torch.randn(channels, 9) * 0.3)

    def linear(self, z: Tensor) -> Tensor:
        """c (I - A^T A) D z."""
        average = CONTRACTION * self.places.softmax(1).reshape(self.channels, 1, 3, 3)
        near = F.conv2d(z, average, padding=1, groups=self.channels)
        return near - F.conv2d(near, inhibition(self.weight)[:, :, None, None])

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.relu(self.linear(z) + u)


@seeded
def deq_digits() -> Made:
    """An equilibrium of 48 units for scikit-learn's 8x8 digits, pixels 0..1."""
    return dense(nn.Sequential(nn.Flatten(), nn.Linear(64, 48)), 48), torch.zeros(1, 1, 8, 8)


@seeded
def deq_mlp() -> Made:
    """An equilibrium of 128 units for MNIST at half its resolution."""
    inject = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, 128))
    return dense(inject, 128), torch.zeros(1, 1, 28, 28)


@seeded
def deq_conv() -> Made:
    """A convolutional equilibrium of 32 channels at 7x7 for MNIST."""
    return convolutional(1, 32, 28), torch.zeros(1, 1, 28, 28)


@seeded
def deq_conv_cifar() -> Made:
    """A convolutional equilibrium of 64 channels at 8x8 for CIFAR-10."""
    return convolutional(3, 64, 32), torch.zeros(1, 3, 32, 32)


def dense(inject: nn.Module, width: int) -> Equilibrium:
    """Ten classes. GroupNorm on both sides: a solve that stopped early leaves a smaller z; the head cannot see that."""
    return equilibrium(
        nn.Sequential(inject, nn.GroupNorm(1, width)),
        Inhibition(width),
        nn.Sequential(nn.GroupNorm(1, width), nn.Linear(width, 10)),
    )


def convolutional(colours: int, channels: int, size: int) -> Equilibrium:
    """Ten classes, of images with `size` rows and columns: the equilibrium has a quarter of both."""
    half = channels // 2
    inject = nn.Sequential(
        nn.Conv2d(colours, half, 5, stride=2, padding=2),
        nn.GroupNorm(4, half),
        nn.ReLU(),
        nn.Conv2d(half, channels, 3, stride=2, padding=1),
        nn.GroupNorm(4, channels),
    )
    features = channels * (size // 4) ** 2
    norm = nn.GroupNorm(4, channels)
    nn.init.constant_(norm.weight, (100 / features) ** 0.5)  # so that the head learns as fast as one of 100 features
    return equilibrium(inject, ConvInhibition(channels), nn.Sequential(norm, nn.Flatten(), nn.Linear(features, 10)))
