"""Programs that one method needs: SCAFFOLD's control variates, FedDyn's memory, FedProto's prototypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgefl.bundle import Bundle
from edgefl.errors import InputError, LoweringError
from edgefl.method import Task
from edgefl.tensors import Tensors
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import Outcome, perform
from edgefl_exporter import SGD, export

EXAMPLES, FEATURES, CLASSES = 12, 4, 3


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def data() -> Dataset:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return Dataset(x, np.arange(EXAMPLES) % CLASSES)


def carried_out(bundle: Bundle, *tasks: Task, announced: Any = None) -> tuple[Outcome, Any]:
    """The outcome of the tasks on the twelve examples, in their order, and the state afterwards."""
    runtime = Runtime(bundle)
    feeds = {"train": fit_to_contract(data(), bundle.manifest.data, "test")}
    return perform(runtime, tasks, announced or {}, feeds, device="d"), runtime.state()


# --- SCAFFOLD -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_control_variate_is_the_mean_gradient_of_the_steps(tmp_path: Path, micro_batches: int) -> None:
    """With a learning rate of nearly nothing each step has the gradient of where it began; a step of two micro-batches
    counts as one."""
    bundle = export(
        classifier(),
        torch.zeros(1, FEATURES),
        out=tmp_path / "b",
        name="b",
        programs=("train", "gradient"),
        method="scaffold",
        micro_batches=micro_batches,
    )
    train = Task(program="train", batch_size=2, settings={"learning_rate": 1e-9})
    sends = tuple(o.name for o in bundle.manifest.program("control").outputs)
    outcome, state = carried_out(bundle, train, Task(program="control", steps=1, batch_size=1, send=sends))
    gradient, _ = carried_out(bundle, Task(program="gradient", batch_size=0, send=("gradient.*",)))
    assert state["optimizer.control_steps"] == 6 / micro_batches
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        want = gradient.tensors[f"gradient.{name}"]
        np.testing.assert_allclose(state[f"own_control.{name}"], want, rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(outcome.tensors[f"control_change.{name}"], state[f"own_control.{name}"])


def test_the_correction_comes_before_clipping_and_momentum(tmp_path: Path) -> None:
    """With c - c_i far above the gradient, the step has the clipped length and c's direction."""
    bundle = export(
        classifier(),
        torch.zeros(1, FEATURES),
        out=tmp_path / "b",
        name="b",
        programs=("train",),
        method="scaffold",
        optimizer=SGD(1.0, momentum=0.9),
        clip_norm=0.5,
        proximal=0.0,
    )
    announced = {t.name: np.zeros(t.shape, np.float32) for t in bundle.manifest.shared() if "control." in t.name}
    announced["control.2.bias"] += np.array([3e6, 0, 4e6], np.float32)
    _, state = carried_out(
        bundle, Task(program="train", steps=1, batch_size=0, load=("control.*",)), announced=announced
    )
    moved = state["2.bias"] - bundle.weights()["2.bias"]
    np.testing.assert_allclose(moved, [-0.3, 0, -0.4], atol=1e-5)


def test_without_a_step_the_control_variate_stays(tmp_path: Path) -> None:
    model = classifier()
    options = {"method": "scaffold", "programs": ("train",)}
    bundle = export(model, torch.zeros(1, FEATURES), out=tmp_path / "b", name="b", **options)
    runtime = Runtime(bundle)
    runtime.load({"own_control.2.bias": np.ones(CLASSES, np.float32)})
    changed = runtime.step("control", {})
    np.testing.assert_array_equal(runtime.view("own_control.2.bias"), np.ones(CLASSES))
    assert not any(value.any() for value in changed.values())


# --- FedDyn -------------------------------------------------------------------------------------------------------

ALPHA, RATE = 0.5, 0.2


def regression(tmp_path: Path, **options: Any) -> tuple[Bundle, Dataset]:
    """w x + b for four numbers and two outputs, with FedDyn's programs; twelve examples."""
    torch.manual_seed(3)
    more = {
        "loss": "mse",
        "optimizer": SGD(RATE),
        "programs": ("train",),
        "method": "feddyn",
        "proximal": ALPHA,
    } | options
    bundle = export(nn.Linear(FEATURES, 2), torch.zeros(1, FEATURES), out=tmp_path / "b", name="b", **more)
    draw = np.random.default_rng(1)
    return bundle, Dataset(data().features, draw.normal(size=(EXAMPLES, 2)).astype(np.float32))


def slope(theta: Tensors, examples: Dataset) -> Tensors:
    """The gradient of mean |x W^T + b - y|^2 / 2 outputs, written out."""
    x, y = examples.features.astype(np.float64), examples.labels
    error = 2 * (x @ theta["weight"].T + theta["bias"] - y) / y.size
    return {"weight": error.T @ x, "bias": error.sum(0)}


def round_of(runtime: Runtime, examples: Dataset, theta: Tensors, steps: int) -> Tensors:
    """What a device has after the three tasks of a round that announced theta."""
    tasks = (
        Task(program="anchor", load=("*",), steps=1, batch_size=1),
        Task(program="train", epochs=steps, batch_size=0),
        Task(program="dynamic", steps=1, batch_size=1),
    )
    feeds = {"train": fit_to_contract(examples, runtime.bundle.manifest.data, "test")}
    perform(runtime, tasks, {name: value.astype(np.float32) for name, value in theta.items()}, feeds, device="d")
    return {name: np.array(value, np.float64) for name, value in runtime.state().items()}


def test_two_rounds_of_feddyn_are_the_papers(tmp_path: Path) -> None:
    """L_k(w) - <g, w> + (alpha / 2) |w - theta|^2 by five steps of SGD, then g <- g - alpha (w - theta), twice."""
    bundle, examples = regression(tmp_path)
    runtime = Runtime(bundle)
    theta: Tensors = {name: value.astype(np.float64) for name, value in bundle.weights().items() if "." not in name}
    g: Tensors = {name: np.zeros_like(value) for name, value in theta.items()}
    for _ in range(2):
        found = round_of(runtime, examples, theta, steps=5)
        w = dict(theta)
        for _ in range(5):
            by_w = slope(w, examples)
            w = {n: w[n] - RATE * (by_w[n] - g[n] + ALPHA * (w[n] - theta[n])) for n in w}
        g = {n: g[n] - ALPHA * (w[n] - theta[n]) for n in w}
        for name in w:
            np.testing.assert_allclose(found[name], w[name], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(ALPHA * found[f"own_shift.{name}"], g[name], rtol=1e-4, atol=1e-6)
        theta = {name: value + 0.3 for name, value in w.items()}  # what the aggregator announces next is not w


def test_a_device_that_is_done_remembers_the_slope_where_it_is(tmp_path: Path) -> None:
    """The paper's first-order condition: at the minimum g_k is the gradient of L_k, whatever it was before."""
    bundle, examples = regression(tmp_path)
    runtime = Runtime(bundle)
    theta = {"weight": np.full((2, FEATURES), 0.5), "bias": np.array([1.0, -1.0])}
    for announced in (theta, {name: -value for name, value in theta.items()}):
        found = round_of(runtime, examples, announced, steps=300)
        for name, by_w in slope({n: found[n] for n in theta}, examples).items():
            np.testing.assert_allclose(ALPHA * found[f"own_shift.{name}"], by_w, atol=2e-5)
            assert np.abs(by_w).max() > 0.01


def test_what_feddyn_remembers_stays_where_it_is(tmp_path: Path) -> None:
    bundle, _ = regression(tmp_path)
    assert {tensor.name for tensor in bundle.manifest.shared()} == {"weight", "bias"}
    assert bundle.manifest.program("train").settings() == pytest.approx({"learning_rate": RATE, "proximal": ALPHA})
    assert bundle.manifest.program("dynamic").writes.keys() == {"own_shift.weight", "own_shift.bias"}
    with pytest.raises(InputError, match="alpha of --method feddyn is above 0"):
        regression(tmp_path, proximal=0.0)


def test_feddyn_with_momentum_clipping_and_micro_batches_is_proven(tmp_path: Path) -> None:
    more = {"optimizer": SGD(RATE, momentum=0.9), "clip_norm": 0.5, "micro_batches": 2}
    bundle, _ = regression(tmp_path, **more)
    assert bundle.manifest.program("train").parity.worst < 1e-4


# --- FedProto -----------------------------------------------------------------------------------------------------


def test_the_pull_is_to_the_known_prototype_of_ones_class(tmp_path: Path) -> None:
    """loss = cross entropy + weight * the mean of (f - p[y])^2, with class 1 unknown."""
    model = classifier()
    bundle = export(model, torch.zeros(1, FEATURES), out=tmp_path / "b", name="b", method="fedproto")
    prototypes = np.random.default_rng(1).normal(size=(CLASSES, 5)).astype(np.float32)
    known = np.array([1, 0, 1], np.float32)
    task = Task(program="evaluate", load=("*",), batch_size=5, settings={"prototype_weight": 3.0})
    outcome, _ = carried_out(bundle, task, announced={"prototypes": prototypes, "known": known})
    with torch.no_grad():
        x, y = torch.from_numpy(data().features), torch.from_numpy(data().labels)
        features = model[1](model[0](x)).numpy()
        plain = nn.functional.cross_entropy(model(x), y).item()
    labels = data().labels
    far = np.where(labels == 1, 0, np.square(features - prototypes[labels]).mean(1))
    nearest = np.argmin([np.square(features - p).sum(1) for p in prototypes[[0, 2]]], axis=0) * 2
    metrics = outcome.metrics
    assert metrics["evaluate.prototype_distance"] == pytest.approx(far.mean(), rel=1e-5)
    assert metrics["evaluate.loss"] == pytest.approx(plain + 3 * far.mean(), rel=1e-5)
    assert metrics["evaluate.prototype_accuracy"] == pytest.approx((nearest == labels).mean())


def test_sums_and_counts_of_each_class_over_several_batches(tmp_path: Path) -> None:
    model = classifier()
    bundle = export(model, torch.zeros(1, FEATURES), out=tmp_path / "b", name="b", method="fedproto", batch=8)
    task = Task(program="prototypes", batch_size=5, send=("prototype_*",))
    outcome, _ = carried_out(bundle, task)
    with torch.no_grad():
        features = model[1](model[0](torch.from_numpy(data().features))).numpy()
    for label in range(CLASSES):
        mine = features[data().labels == label]
        np.testing.assert_allclose(outcome.tensors["prototype_sums"][label], mine.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outcome.tensors["prototype_counts"], [4, 4, 4])


def test_statistics_of_private_layers_stay_private(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES))
    options = {"method": "fedproto", "programs": ("train",)}
    bundle = export(model, torch.zeros(1, FEATURES), out=tmp_path / "b", name="b", **options)
    assert {t.name for t in bundle.manifest.shared()} == {"prototypes", "known"}


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (classifier(), {"loss": "mse"}, "prototypes need classes, which mse has not"),
        (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), {}, "the model does not end with its last Linear, '0'"),
        (
            nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten()),
            {},
            "the model has no Linear inside",
        ),
    ],
)
def test_models_without_prototypes(tmp_path: Path, model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        export(model, torch.zeros(1, FEATURES), out=tmp_path / "b", name="b", method="fedproto", **options)
    assert not (tmp_path / "b").exists()
