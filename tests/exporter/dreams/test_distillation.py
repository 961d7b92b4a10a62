"""Soft labels for dreams, and learning from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dreamed import CLASSES, carried_out, noise, with_norms

from edgefl.bundle import Bundle
from edgefl.method import Task
from edgefl_device.engines.runtime import Runtime


def test_labels_are_probabilities(bundles: dict[str, Bundle]) -> None:
    task = Task(program="label", feed="announced", batch_size=4, send=("probabilities",))
    outcome = carried_out(Runtime(bundles["batch norm"]), task, x=noise())
    with torch.no_grad():
        want = with_norms().eval()(torch.from_numpy(noise())).softmax(1)
    np.testing.assert_allclose(outcome.tensors["probabilities"], want, rtol=1e-5)
    np.testing.assert_allclose(outcome.tensors["probabilities"].sum(1), np.ones(6), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 20.0])
def test_a_step_of_distillation_is_autograds(bundles: dict[str, Bundle], temperature: float) -> None:
    """T^2 KL to the labels at temperature T, of which one is certain; in training mode, with train's momentum."""
    runtime = Runtime(bundles["batch norm"])
    y = np.random.default_rng(2).dirichlet(np.ones(CLASSES), size=6).astype(np.float32)
    y[0] = (0, 1, 0)
    settings = {"temperature": temperature, "learning_rate": 0.5}
    task = Task(program="distill", feed="announced", batch_size=0, epochs=2, settings=settings)
    outcome = carried_out(runtime, task, x=noise(), y=y)

    model = with_norms().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    wanted = torch.from_numpy(np.maximum(y, 1e-6).astype(np.float64) ** (1 / temperature)).float()
    wanted = wanted / wanted.sum(1, keepdim=True)
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(torch.from_numpy(noise()))
        loss = temperature**2 * F.kl_div((logits / temperature).log_softmax(1), wanted, reduction="batchmean")
        loss.backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(runtime.view(name), value, rtol=1e-4, atol=1e-6)
    assert outcome.metrics["distill.loss"] == pytest.approx(loss.item(), rel=1e-4)
    agreed = (logits.argmax(1).numpy() == y.argmax(1)).mean()
    assert outcome.metrics["distill.agreement"] == pytest.approx(agreed)


def test_a_model_agrees_with_its_own_labels(bundles: dict[str, Bundle]) -> None:
    """The gradient at the model's own probabilities is nothing: without BatchNorm training sees the same."""
    runtime = Runtime(bundles["none"])
    label = Task(program="label", feed="announced", send=("probabilities",))
    y = carried_out(runtime, label, x=noise()).tensors["probabilities"]
    before = runtime.state()
    outcome = carried_out(runtime, Task(program="distill", feed="announced", batch_size=0), x=noise(), y=y)
    assert outcome.metrics["distill.loss"] == pytest.approx(0, abs=1e-6)
    assert outcome.metrics["distill.agreement"] == 1
    for name in ("0.weight", "5.bias"):
        np.testing.assert_allclose(runtime.view(name), before[name], atol=1e-6)
