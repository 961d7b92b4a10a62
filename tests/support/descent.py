"""FedAvg that is gradient descent, in numbers that float32 holds exactly.

The problem is the linear regression of toy.py. With one epoch, all of a device's data in one batch, and everybody in
every round, FedAvg is gradient descent on the union of the data. The numbers are small binary fractions (8 examples in
all, 1, 2 and 4 on the devices times two, a learning rate of 1/4), so "the same weights" means the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from memory import World

from edgefl.bundle import Bundle
from edgefl.methods.fedavg import FedAvg
from edgefl_device.data.dataset import Dataset

ROUNDS = 3
RATE = 0.25
SIZES = {"pi-1": 2, "pi-2": 4, "pi-3": 2}


def make_data(width: int) -> dict[str, Dataset]:
    """Features -1, 0 or 1 (of many, only the first three are not 0), labels -2 ... 2."""
    rng = np.random.default_rng(7)
    data = {}
    for name, size in SIZES.items():
        features = np.zeros((size, width), np.float32)
        features[:, :3] = rng.integers(-1, 2, (size, min(3, width)))
        data[name] = Dataset(features, rng.integers(-2, 3, size).astype(np.float32))
    return data


def gradient_descent(data: dict[str, Dataset], rounds: int = ROUNDS) -> Any:
    """w <- w - rate * 2/n X^T (X w - y) on all examples together."""
    x = np.concatenate([d.features for d in data.values()]).astype(np.float64)
    y = np.concatenate([d.labels for d in data.values()]).astype(np.float64)
    w = np.zeros(x.shape[1])
    for _ in range(rounds):
        w = w - RATE * 2 / len(x) * x.T @ (x @ w - y)
    return w


def fedavg(bundle: Bundle, **settings: Any) -> FedAvg:
    initial = {t.name: bundle.weights()[t.name] for t in bundle.manifest.shared()}
    chosen = {"rounds": ROUNDS, "batch_size": 0, "learning_rate": RATE} | settings
    return FedAvg(initial, **chosen)


MakeWorld = Callable[..., World]


def assert_exact(world: World) -> None:
    """Every round counted every device once, and the weights are gradient descent's, bit for bit."""
    assert [number for number, _ in world.rounds] == list(range(ROUNDS))
    assert all(devices == tuple(sorted(SIZES)) for _, devices in world.rounds)
    state = world.coordinator.state
    assert state.round == ROUNDS
    w = gradient_descent(make_data(world.classes[0].bundle.manifest.tensor("w").shape[0]))
    assert np.abs(w).max() > 0.1
    np.testing.assert_array_equal(state.tensors["w"], w)
    assert world.coordinator.finished
    assert world.store.load_state().tensors["w"].tobytes() == state.tensors["w"].tobytes()


def trained_once_a_round(world: World) -> bool:
    return all(
        [round for round, _ in node.jobs] == list(range(ROUNDS)) and len(set(node.jobs)) == ROUNDS
        for node in world.nodes.values()
    )
