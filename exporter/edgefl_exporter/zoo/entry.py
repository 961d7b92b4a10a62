"""What the zoo says of a model, and the fixed seed of its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Tensor]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    make       () -> the module and an example input [batch, ...]; its docstring says what the model is. Some take
               `features`, the width before the last layer
    reference  where the architecture was published
    loss       what it is trained with: a name in edgefl_exporter.programs.losses
    range      lowest and highest value of its input, before normalisation; None where that is the data's own affair
    """

    make: Callable[..., Made]
    reference: str
    loss: str = "cross_entropy"
    range: tuple[float, float] | None = None

    @property
    def about(self) -> str:
        """One line."""
        return (self.make.__doc__ or "").strip().split("\n")[0]


def seeded(build: Callable[P, T]) -> Callable[P, T]:
    """`build` with random numbers from seed 0, so that everybody starts from the same weights."""

    @functools.wraps(build)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(*args, **kwargs)

    return made
