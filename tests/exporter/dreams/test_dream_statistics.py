"""What dreams are to match where a model has no BatchNorm: statistics of a device's own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dreamed import (
    CLASSES,
    EXAMPLES,
    NORMALISATION,
    SHAPE,
    STATISTICS,
    TINY,
    carried_out,
    normalised,
    objective,
    pixels,
    seen_by,
    with_norms,
    without_norms,
)
from torch import Tensor, nn

from edgefl.bundle import Bundle
from edgefl.method import Task
from edgefl_device.engines.runtime import Runtime
from edgefl_exporter import export
from edgefl_exporter.programs.dreams import dream
from edgefl_exporter.programs.observed import statistics


@pytest.mark.parametrize("batch_size", [1, 4, 11, 0])
def test_statistics_are_those_of_all_examples_whatever_the_batches(bundles: dict[str, Bundle], batch_size: int) -> None:
    """Eleven examples in batches of 4, 4 and 3 have the mean and variance of eleven."""
    runtime = Runtime(bundles["none"])
    task = Task(program="statistics", reset=("observed.examples",), batch_size=batch_size)
    carried_out(runtime, task, task)  # a second time is no more examples
    with torch.no_grad():
        seen = seen_by(without_norms().double(), normalised(pixels()).double())
    np.testing.assert_allclose(runtime.view("observed.mean"), np.concatenate([v.mean(1) for v in seen]), atol=1e-6)
    variance = np.concatenate([np.var(v.numpy(), 1) for v in seen])
    np.testing.assert_allclose(runtime.view("observed.variance"), variance, rtol=2e-6)
    assert runtime.view("observed.examples") == EXAMPLES


def test_the_distance_is_to_what_dreams_have_matched_so_far(bundles: dict[str, Bundle]) -> None:
    """Of data as it was: nothing, but TINY. Of one layer's mean moved by 3 in one channel and 4 in another: 5."""
    runtime = Runtime(bundles["none"])
    carried_out(runtime, STATISTICS)
    again = carried_out(runtime, STATISTICS)
    assert again.metrics["statistics.distance"] == pytest.approx(4 * TINY**0.5, rel=1e-2)
    moved = runtime.state(["observed.mean"])["observed.mean"]
    moved[:2] += (3, 4)
    runtime.load({"observed.mean": moved})
    assert carried_out(runtime, STATISTICS).metrics["statistics.distance"] == pytest.approx(5, rel=1e-3)


class Shared(nn.Module):
    """A convolution that is called twice, each time with an activation that changes its output in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x), inplace=True)
        x = F.relu(self.again(x), inplace=True)
        x = F.relu(self.again(x), inplace=True)
        return self.head(x.mean((2, 3)))


def test_a_layer_is_observed_at_each_call_and_before_what_changes_it_in_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Shared(), torch.zeros(1, *SHAPE)
    programs = (statistics, dream)
    bundle = export(
        model, x, out=tmp_path / "b", name="b", programs=(), own_programs=programs, normalisation=NORMALISATION
    )
    runtime = Runtime(bundle)
    carried_out(runtime, STATISTICS)
    with torch.no_grad():
        outputs = [model.first(normalised(pixels()))]
        for _ in range(2):
            outputs.append(model.again(outputs[-1].relu()))
    want = np.concatenate([y.mean((0, 2, 3)) for y in outputs])
    np.testing.assert_allclose(runtime.view("observed.mean"), want, atol=1e-6)


def test_a_model_with_batch_norm_keeps_no_other_statistics(bundles: dict[str, Bundle]) -> None:
    runtime = Runtime(bundles["batch norm"])
    outcome = carried_out(runtime, Task(program="statistics", batch_size=0))
    with torch.no_grad():
        far = objective(with_norms(), {}, "statistics", normalised(pixels()).double())
    assert outcome.metrics["statistics.distance"] == pytest.approx(far.item(), rel=1e-5)
    assert not bundles["batch norm"].manifest.program("statistics").writes
    assert not any(tensor.name.startswith("observed") for tensor in bundles["batch norm"].manifest.state)
