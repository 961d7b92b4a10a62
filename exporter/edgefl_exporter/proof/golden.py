"""The batch that a bundle carries with PyTorch's answers, for whoever holds a program to them elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgefl.replay import compare, golden_values, require
from edgefl.tensors import Array
from edgefl_exporter.programs.samples import Samples
from edgefl_exporter.proof.cases import TOLERANCE
from edgefl_exporter.proof.sides import Sides, arrays, tensors

GOLDEN_BATCH = 6
GOLDEN_TRIES = 8


def golden(
    sides: Sides, state: Mapping[str, Tensor], initial: Mapping[str, Tensor], samples: Samples, seed: int
) -> dict[str, Array]:
    """One batch from the bundle's weights, which are not stored again; a scalar in place of a state tensor fills it.

    Other machines round otherwise, so of some batches the first is taken where rounding decides nothing, or else the
    one where it decides least. Raises ParityError where the program meets the tolerance on none.
    """
    definition = sides.definition
    found: list[tuple[float, dict[str, Array]]] = []
    errors: dict[str, float] = {}
    for attempt in range(GOLDEN_TRIES):
        inputs = definition.draw(samples, GOLDEN_BATCH, torch.Generator().manual_seed(seed + 1 + attempt))
        values = {**state, **inputs}
        want = {k: v for k, v in sides.torch(values).items() if not k.startswith("slack.")}
        inputs |= {name: torch.tensor(value) for name, value in definition.typical.items()}
        batch = {f"in.{k}": v for k, v in arrays(inputs).items()} | {f"out.{k}": v for k, v in arrays(want).items()}
        start = golden_values(arrays(initial), batch)
        errors = compare(sides.program, start, arrays(sides.file(tensors(start))), arrays(want))
        if not max(errors.values()) <= TOLERANCE:
            continue
        moved = compare(sides.program, start, arrays(sides.nearby(values)[0]), arrays(want))
        found.append((max(moved.values()), batch))
        if found[-1][0] <= TOLERANCE:
            break
    if not found:
        require(errors, TOLERANCE, program=definition.name, check="golden")
    return min(found, key=lambda entry: entry[0])[1]
