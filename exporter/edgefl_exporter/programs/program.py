"""What every program is before it is lowered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgefl.manifest import Input, Output
from edgefl.names import GRADIENT_Z
from edgefl_exporter.programs.samples import Samples

Values = Mapping[str, Tensor]
PRESENT = "present"
DREAM = ("dream_", GRADIENT_Z)  # and those that hold how dreams, or what they are made of, should change


@dataclass(frozen=True)
class Definition:
    """One program as PyTorch functions of named tensors.

    step     the pure function that is traced: inputs and state -> outputs and `next.NAME` of each state tensor
             it writes
    oracle   PyTorch's own answer for the same names, made another way: the real module, `backward()`,
             torch.optim. May add `slack.NAME`: by how much an output may differ where examples are undecided
    writes   state tensor -> name of the result that holds its next value
    typical  state that is proven from this number instead of its initial one: a second moment of zero makes Adam's
             first step the sign of each gradient, also of those that are only rounding noise
    batch    the one batch size of a program that has no dynamic one; a smaller batch is padded
    brings   state beside the model's and the optimizer's, with its initial values
    samples  random examples of its own, where its features or labels are not those that the model trains on
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    writes: dict[str, str]
    step: Callable[[Values], dict[str, Tensor]]
    oracle: Callable[[Values], dict[str, Tensor]]
    typical: Mapping[str, float] = field(default_factory=dict)
    batch: int | None = None
    brings: Mapping[str, Tensor] = field(default_factory=dict)
    samples: Samples | None = None

    def draw(self, samples: Samples, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random inputs for `count` examples, padded where the batch is fixed; settings have their defaults."""
        samples = self.samples or samples
        count = min(count, self.batch or count)
        values: dict[str, Tensor] = {}
        for entry in self.inputs:
            if entry.source == "setting":
                values[entry.name] = torch.tensor(entry.default, dtype=getattr(torch, entry.dtype))
            elif entry.source == "seed":
                values[entry.name] = torch.randint(0, 2**62, (), generator=generator)
            elif entry.source == "labels":
                values[entry.name] = self._padded(samples.labels(count, generator))
            elif entry.source == "features":
                values[entry.name] = self._padded(samples.features(count, generator))
            else:
                values[entry.name] = (torch.arange(self.batch or count) < count).to(torch.float32)
        return values

    def _padded(self, rows: Tensor) -> Tensor:
        """The rows again and again, up to the batch size."""
        if self.batch is None:
            return rows
        return torch.cat([rows] * -(-self.batch // len(rows)))[: self.batch]


def following(name: str) -> str:
    """The graph output that holds the next value of a state tensor."""
    return f"next.{name}"
