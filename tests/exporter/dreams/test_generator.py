"""Dreams that a network makes of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dreamed import (
    NORMALISATION,
    SHAPE,
    STATISTICS,
    carried_out,
    carried_out_alone,
    objective,
    two_layers,
    without_norms,
)

from edgefl.bundle import Bundle
from edgefl.errors import LoweringError
from edgefl.method import Task
from edgefl.tensors import Array
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import perform
from edgefl_exporter import export
from edgefl_exporter.methods import CoDream
from edgefl_exporter.programs.generator import NUMBERS, Generator
from edgefl_exporter.programs.objective import FACTORS


def generator_of(bundle: Bundle) -> Generator:
    """PyTorch's own, with the bundle's weights, in float64."""
    weights = {n.removeprefix("generator."): torch.from_numpy(w) for n, w in bundle.weights().items() if "gen" in n}
    module = Generator(SHAPE, NORMALISATION)
    module.load_state_dict(weights)
    return module.double()


def latent(count: int = 6) -> Array:
    return np.random.default_rng(3).normal(size=(count, NUMBERS)).astype(np.float32)


def test_generated_dreams_are_images_in_the_range_of_pixels(bundles: dict[str, Bundle]) -> None:
    """Also where neither height nor width can be divided by four."""
    runtime = Runtime(bundles["none"])
    weights = runtime.state(["generator.body.10.bias"])["generator.body.10.bias"]
    task = Task(program="generate", feed="announced", load=("generator.*",), batch_size=4, send=("x",))
    for shift, pixel in ((50, 1.0), (-50, 0.0)):
        extreme = {"generator.body.10.bias": weights + shift}
        x = perform(runtime, [task], {"x": latent()} | extreme, {}, device="d").tensors["x"]
        want = [(pixel - m) / s for m, s in zip(NORMALISATION.mean, NORMALISATION.std, strict=True)]
        np.testing.assert_allclose(x, np.broadcast_to(np.reshape(want, (2, 1, 1)), (6, *SHAPE)), rtol=1e-6)
    x = carried_out_alone(bundles["none"], Task(program="generate", feed="announced", send=("x",)), latent())
    with torch.no_grad():
        want = generator_of(bundles["none"])(torch.from_numpy(latent()).double())
    np.testing.assert_allclose(x.tensors["x"], want, atol=1e-5)


def test_the_generators_gradient_is_that_of_finite_differences(bundles: dict[str, Bundle]) -> None:
    """Along one random direction of each tensor and of z: central differences in float64, in steps of length 1e-6."""
    bundle = bundles["none"]
    runtime = Runtime(bundle)
    factors = FACTORS | {"total_variation": 0.1, "l2": 0.1}
    settings = factors | {"gradient_scale": 8.0}
    sends = ("gradient.generator.*", "gradient_z")
    task = Task(program="generator_step", feed="announced", batch_size=0, send=sends, settings=settings)
    outcome = carried_out(runtime, STATISTICS, task, x=latent())
    module, z, state = generator_of(bundle), torch.from_numpy(latent()).double(), runtime.state()
    model = without_norms()

    def value() -> float:
        terms = [factor * objective(model, state, term, module(z)) for term, factor in factors.items()]
        return torch.stack(terms).sum().item()

    draw = torch.Generator().manual_seed(0)
    tensors = {f"gradient.generator.{name}": w for name, w in module.named_parameters()} | {"gradient_z": z}
    assert outcome.tensors.keys() == tensors.keys()
    with torch.no_grad():
        assert outcome.metrics["generator_step.loss"] == pytest.approx(value(), rel=1e-5)
        for name, tensor in tensors.items():
            got = torch.from_numpy(outcome.tensors[name]).double() / 8
            direction = torch.randn(tensor.shape, generator=draw, dtype=torch.float64) + got.sign()
            direction /= direction.norm()
            ends = []
            for step in (1e-6, -2e-6):
                tensor += step * direction
                ends.append(value())
            tensor += 1e-6 * direction
            assert (got * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4), name


def test_generating_changes_nothing(bundles: dict[str, Bundle]) -> None:
    for program in ("generate", "generator_step"):
        assert not bundles["none"].manifest.program(program).writes
        assert program not in bundles["batch norm"].manifest.programs


def test_a_generator_makes_images_only(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="a generator makes images, .channels, height, width."):
        export(two_layers(), torch.zeros(1, 4), out=tmp_path / "b", name="b", method=CoDream(generator=True))
