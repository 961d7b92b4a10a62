"""The models of `step_time.py`: the zoo's, and a few that are too small or too plain to be in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefl_exporter.zoo import ZOO
from edgefl_exporter.zoo.recurrent import char_lstm


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(nn.Flatten(), *layers), torch.zeros(1, 1, 28, 28)


def strided_cnn() -> tuple[nn.Module, Tensor]:
    layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10)), torch.zeros(1, 1, 28, 28)


def batch_norm_cnn() -> tuple[nn.Module, Tensor]:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    layers = [*block(1, 16), *block(16, 32), nn.Flatten(), nn.Linear(32 * 7 * 7, 10)]
    return nn.Sequential(*layers), torch.zeros(1, 1, 28, 28)


@dataclass(frozen=True)
class Benched:
    """A model, its batch sizes, and the loss it is trained with."""

    make: Callable[[], tuple[nn.Module, Tensor]]
    batches: tuple[int, ...] = (32,)
    loss: str = "cross_entropy"

    def data(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Random inputs and labels."""
        _, example = self.make()
        draw = np.random.default_rng(0)
        shape = (batch, *example.shape[1:])
        if example.dtype == torch.int64:  # characters; each one's label is a character too
            return draw.integers(0, 80, shape), draw.integers(0, 80, shape)
        return draw.standard_normal(shape, dtype=np.float32), draw.integers(0, 10, batch)


class WithLoss(nn.Module):
    """A model and its loss as one module: what the step of another runtime is made from."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self.model(x)
        return F.cross_entropy(logits.flatten(0, -2), y.flatten())


MODELS: dict[str, Benched] = {
    "MLP 784-128-64-10": Benched(mlp),
    "strided CNN 20 k": Benched(strided_cnn),
    "MNIST CNN 1.66 M": Benched(ZOO["mnist-cnn"].make, (10, 50)),
    "BatchNorm CNN": Benched(batch_norm_cnn),
    "ResNet-8": Benched(ZOO["resnet8"].make),
    "ResNet-20": Benched(ZOO["resnet20"].make),
    "MobileNetV2-style": Benched(ZOO["mobilenetv2"].make),
    "small ViT": Benched(ZOO["vit"].make),
    "char-LSTM 40 x 128": Benched(lambda: char_lstm(128, 40), loss="next_token"),
}
