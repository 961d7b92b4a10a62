"""What every program is before it is lowered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from edgefl.bundle import Input, Output

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Definition:
    """One program as PyTorch functions of named tensors.

    step     the pure function that is traced: inputs and state -> outputs and `next.NAME` of each state tensor
             it writes
    oracle   PyTorch's own answer for the same names, made another way: the real module, `backward()`,
             torch.optim. May add `slack.NAME`: by how much an output may differ where examples are undecided
    writes   state tensor -> name of the result that holds its next value
    """

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    writes: dict[str, str]
    step: Callable[[Values], dict[str, Tensor]]
    oracle: Callable[[Values], dict[str, Tensor]]


def following(name: str) -> str:
    """The graph output that holds the next value of a state tensor."""
    return f"next.{name}"
