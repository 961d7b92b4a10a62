"""CoDream's gradient of a dream, as a device makes it: of each term, of their sum, of all devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dreamed import (
    CLASSES,
    MODELS,
    STATISTICS,
    TINY,
    alone,
    carried_out,
    carried_out_alone,
    dreaming,
    noise,
    normalised,
    objective,
    pixels,
    two_layers,
)
from torch import nn

from edgefl.bundle import Bundle
from edgefl.method import Task
from edgefl_device.engines.runtime import Runtime
from edgefl_exporter import export
from edgefl_exporter.programs.dreams import dream
from edgefl_exporter.programs.objective import FACTORS
from edgefl_exporter.programs.observed import statistics


@pytest.mark.parametrize("term", FACTORS)
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_each_term_is_that_of_finite_differences(
    bundles: dict[str, Bundle], name: str, term: str
) -> None:
    """Central differences in float64 with steps of 1e-5 are off by the third derivative times 1e-10, and by the
    rounding of L, 1e-16 / 1e-5; what is left is the program's float32: 1e-6 of the largest, with a margin of 20."""
    runtime = Runtime(bundles[name])
    x = noise(3)
    outcome = carried_out(runtime, STATISTICS, dreaming(**alone(term)), x=x)
    state = runtime.state()
    model, wide = MODELS[name](), torch.from_numpy(x).double()
    gradient = torch.zeros_like(wide)
    with torch.no_grad():
        value = objective(model, state, term, wide)
        for place in range(wide.numel()):
            ends = []
            for step in (1e-5, -1e-5):
                moved = wide.clone()
                moved.view(-1)[place] += step
                ends.append(objective(model, state, term, moved))
            gradient.view(-1)[place] = (ends[0] - ends[1]) / 2e-5
    got = outcome.tensors["dream_gradient"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, gradient.numpy(), rtol=0, atol=2e-5 * gradient.abs().max())
    assert outcome.metrics[f"dream.{term}_term"] == pytest.approx(value.item(), rel=1e-5)
    assert outcome.metrics["dream.loss"] == pytest.approx(value.item(), rel=1e-5)


def test_the_loss_is_the_sum_of_the_terms_with_their_factors(bundles: dict[str, Bundle]) -> None:
    runtime = Runtime(bundles["batch norm"])
    factors = {"entropy": 2.0, "statistics": 3.0, "total_variation": 0.5, "l2": 0.25}
    found = carried_out(runtime, dreaming(**factors), x=noise())
    terms = {name: found.metrics[f"dream.{name}_term"] for name in factors}
    assert found.metrics["dream.loss"] == pytest.approx(sum(f * terms[name] for name, f in factors.items()), rel=1e-6)
    each = [carried_out(runtime, dreaming(**alone(name)), x=noise()).tensors["dream_gradient"] for name in factors]
    summed = sum(f * gradient for f, gradient in zip(factors.values(), each, strict=True))
    np.testing.assert_allclose(found.tensors["dream_gradient"], summed, rtol=1e-4, atol=1e-6)
    scaled = carried_out(runtime, dreaming(**factors, gradient_scale=64.0), x=noise())
    np.testing.assert_array_equal(scaled.tensors["dream_gradient"], found.tensors["dream_gradient"] * 64)
    assert scaled.metrics["dream.loss"] == found.metrics["dream.loss"]


def test_the_mean_of_two_devices_gradients_is_the_gradient_of_their_mean_loss(bundles: dict[str, Bundle]) -> None:
    runtimes = {name: Runtime(bundle) for name, bundle in bundles.items()}
    carried_out(runtimes["none"], STATISTICS)
    x = torch.from_numpy(noise()).double().requires_grad_()
    factors = FACTORS | {"total_variation": 0.1, "l2": 0.1}
    losses = [
        factor * objective(MODELS[name](), runtime.state(), term, x)
        for name, runtime in runtimes.items()
        for term, factor in factors.items()
    ]
    (torch.stack(losses).sum() / 2).backward()
    replies = [carried_out(runtime, dreaming(**factors), x=noise()) for runtime in runtimes.values()]
    mean = np.mean([reply.tensors["dream_gradient"] for reply in replies], axis=0)
    np.testing.assert_allclose(mean, x.grad, rtol=0, atol=1e-5 * x.grad.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_dreaming_and_labelling_change_nothing(bundles: dict[str, Bundle], name: str) -> None:
    runtime = Runtime(bundles[name])
    before = runtime.state()
    steps = Task(program="dream_steps", feed="announced", batch_size=0, send=("dream_change",))
    label = Task(program="label", feed="announced", batch_size=4, send=("probabilities",))
    carried_out(runtime, dreaming(), steps, label, x=noise())
    for key, value in runtime.state().items():
        np.testing.assert_array_equal(value, before[key])
    for program in ("dream", "dream_steps", "label"):
        assert not bundles[name].manifest.program(program).writes


def test_at_the_statistics_themselves_the_gradient_is_finite(bundles: dict[str, Bundle]) -> None:
    """Of two layers, mean and variance: four norms of nothing, each the root of TINY."""
    runtime = Runtime(bundles["none"])
    own = Task(program="statistics", reset=("observed.examples",), batch_size=0)
    carried_out(runtime, own)
    outcome = carried_out(runtime, dreaming(**alone("statistics")), x=normalised(pixels()).numpy())
    assert np.abs(outcome.tensors["dream_gradient"]).max() < 1
    assert outcome.metrics["dream.statistics_term"] == pytest.approx(4 * TINY**0.5, rel=1e-2)


def test_features_in_a_row_have_no_total_variation(tmp_path: Path) -> None:
    programs = (statistics, dream)
    bundle = export(two_layers(), torch.zeros(1, 4), out=tmp_path / "b", name="b", programs=(), own_programs=programs)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    outcome = carried_out_alone(bundle, dreaming(), x)
    assert outcome.metrics["dream.total_variation_term"] == 0
    assert outcome.tensors["dream_gradient"].shape == (6, 4)


def test_a_deep_net_is_proven_although_squares_of_its_variances_overflow(tmp_path: Path) -> None:
    """Weights that are 0.05 greater multiply by 10 in each of these layers, variances by 100."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 200), *(nn.Linear(200, 200) for _ in range(12)), nn.Linear(200, CLASSES))
    x = torch.zeros(1, 4)
    bundle = export(model, x, out=tmp_path / "b", name="b", programs=(), own_programs=(statistics,))
    assert bundle.manifest.program("statistics").parity.worst < 1e-4
