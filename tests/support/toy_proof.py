"""A program that the proof can be tried on in milliseconds: a regression as PyTorch would have it, and as a file that a
test makes wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from edgefl.manifest import File, Input, Output, Parity, Program
from edgefl.tensors import Array
from edgefl_exporter.programs.losses import LOSSES, Labels
from edgefl_exporter.programs.program import Definition
from edgefl_exporter.programs.samples import Samples
from edgefl_exporter.proof.sides import Sides, Values

NOTHING = File("", "0" * 64, 0)
X = Input("x", "float32", ("batch", 2), "features")
Y = Input("y", "float32", ("batch",), "labels")
RATE = Input("learning_rate", "float32", (), "setting", 0.1)
OUTPUTS = (Output("loss", "float32", (), "mean"), Output("gradient.w", "float32", (2,), "mean"))
STATE: dict[str, Tensor] = {
    "w": torch.tensor([1.0, -2.0]),
    "head.bias": torch.tensor([0.5]),
    "optimizer.step": torch.tensor(0),
}
WRITES = {"w": "next.w", "head.bias": "next.head.bias", "optimizer.step": "next.optimizer.step"}


def regression(values: Mapping[str, Tensor]) -> Values:
    """loss = mean (x w + b - y)^2; one step of plain SGD, counted."""
    x, y, w, b = (values[name] for name in ("x", "y", "w", "head.bias"))
    off = x @ w + b - y
    g = 2 * (off[:, None] * x).mean(0)
    rate = values["learning_rate"]
    return {
        "loss": (off**2).mean(),
        "gradient.w": g,
        "next.w": w - rate * g,
        "next.head.bias": b - rate * 2 * off.mean(),
        "next.optimizer.step": values["optimizer.step"] + 1,
    }


@dataclass
class Asked:
    """A side that remembers what it was asked, each time."""

    answer: Callable[[Mapping[str, Tensor]], Values] = regression
    values: list[dict[str, Tensor]] = field(default_factory=list)

    def __call__(self, values: Mapping[str, Tensor]) -> Values:
        self.values.append(dict(values))
        return self.answer(values)


@dataclass
class PythonFile:
    """What runs the finished file, were it Python."""

    answer: Callable[[Mapping[str, Tensor]], Values] = regression
    runtime: str = "by hand"

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        answers = self.answer({name: torch.from_numpy(np.asarray(value)) for name, value in values.items()})
        return {name: value.numpy() for name, value in answers.items()}


def definition(
    oracle: Callable[[Mapping[str, Tensor]], Values] = regression,
    *more: Input,
    inputs: tuple[Input, ...] = (X, Y, RATE),
    writes: Mapping[str, str] = WRITES,
    typical: Mapping[str, float] | None = None,
) -> Definition:
    return Definition("train", (*inputs, *more), OUTPUTS, dict(writes), oracle, oracle, typical or {})


def program(writes: Mapping[str, str] = WRITES) -> Program:
    return Program(NOTHING, (X, Y, RATE), OUTPUTS, tuple(STATE), dict(writes), Parity("by hand", 1e-4, {}), NOTHING)


def samples(example: Tensor | None = None) -> Samples:
    """Features like `example`, and one number as each one's label."""
    return Samples(torch.zeros(1, 2) if example is None else example, LOSSES["mse"], Labels((), "float32"), 2)


def sides(made: Definition, file: Callable[[Mapping[str, Tensor]], Values] = regression, seed: int = 0) -> Sides:
    return Sides(made, program(made.writes), PythonFile(file), torch.Generator().manual_seed(seed))
