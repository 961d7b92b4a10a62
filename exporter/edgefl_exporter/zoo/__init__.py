"""Small models people start from: `edgefl export zoo:NAME`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgefl_exporter.zoo import classifiers

# name -> function that gives a model and an example input [batch, ...]
ZOO: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "digits": classifiers.digits,
    "mnist-2nn": classifiers.mnist_2nn,
    "mnist-cnn": classifiers.mnist_cnn,
}
