"""Classifiers of small grey images. Weights come from a fixed seed, so that everybody starts from the same model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def digits() -> tuple[nn.Module, Tensor]:
    """A CNN for 8x8 digits with pixels 0..1 (scikit-learn's load_digits / 16)."""
    model = _seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),  # [batch, 32, 4, 4]
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
    )
    return model, torch.zeros(1, 1, 8, 8)


def mnist_2nn() -> tuple[nn.Module, Tensor]:
    """FedAvg's "2NN" (McMahan et al. 2016): 784-200-200-10, 199,210 parameters. Pixels 0..1, [batch, 1, 28, 28]."""
    model = _seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
        )
    )
    return model, torch.zeros(1, 1, 28, 28)


def mnist_cnn() -> tuple[nn.Module, Tensor]:
    """FedAvg's CNN (McMahan et al. 2016): 1,663,370 parameters, a count that only "same" padding gives."""
    model = _seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),  # [batch, 64, 7, 7]
            nn.Flatten(),
            nn.Linear(3136, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )
    )
    return model, torch.zeros(1, 1, 28, 28)


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()
