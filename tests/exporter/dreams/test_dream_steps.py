"""Steps that a device takes by itself on its dreams: those of Adam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dreamed import MODELS, STATISTICS, carried_out, noise, objective

from edgefl.bundle import Bundle
from edgefl.method import Task
from edgefl_device.engines.runtime import Runtime
from edgefl_exporter.programs.objective import FACTORS


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_local_steps_are_those_of_adam(bundles: dict[str, Bundle], name: str, steps: int) -> None:
    runtime = Runtime(bundles[name])
    settings = {"steps": steps, "step_size": 0.02, "total_variation": 0.1}
    task = Task(program="dream_steps", feed="announced", batch_size=0, send=("dream_change",), settings=settings)
    outcome = carried_out(runtime, STATISTICS, task, x=noise())
    x = torch.from_numpy(noise()).double().requires_grad_()
    model, state, factors = MODELS[name](), runtime.state(), FACTORS | {"total_variation": 0.1}
    adam = torch.optim.Adam([x], lr=0.02)
    losses = []
    for _ in range(steps):
        adam.zero_grad()
        each = [factor * objective(model, state, term, x) for term, factor in factors.items()]
        loss = torch.stack(each).sum()
        loss.backward()
        losses.append(loss.item())
        adam.step()
    np.testing.assert_allclose(outcome.tensors["dream_change"], noise() - x.detach().numpy(), rtol=0, atol=1e-5)
    assert outcome.metrics["dream_steps.loss"] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_many_steps_lead_to_what_the_device_wants(bundles: dict[str, Bundle], name: str) -> None:
    runtime = Runtime(bundles[name])
    carried_out(runtime, STATISTICS)
    task = Task(program="dream_steps", feed="announced", batch_size=0, send=("dream_change",), settings={"steps": 10})
    x, found = noise(), []
    for _ in range(4):
        outcome = carried_out(runtime, task, x=x)
        x = x - outcome.tensors["dream_change"]
        found.append(outcome.metrics["dream_steps.loss"])
    assert found[-1] < 0.8 * found[0]


def test_no_steps_change_nothing(bundles: dict[str, Bundle]) -> None:
    task = Task(program="dream_steps", feed="announced", batch_size=0, send=("dream_change",), settings={"steps": 0})
    outcome = carried_out(Runtime(bundles["batch norm"]), task, x=noise())
    assert not outcome.tensors["dream_change"].any()
