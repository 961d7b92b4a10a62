"""A fleet under a supervisor loses its power again and again, and ends as one that never did.

Twice in `make test`; twenty times, with other seeds, in `make soak`. Linux only: /proc says what is synced.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from emulated import Devices
from household import DEVICES, Household

from edgefl.bundle import Bundle
from edgefl.methods.fedavg import FedAvg
from edgefl.tensors import load_tensors
from edgefl_device.data.dataset import Dataset
from edgefl_device.work.journal import Journal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

CUTS = 20 if float(os.environ.get("EDGEFL_SIEGE_S", "1")) > 1 else 2
ROUNDS = 30 * CUTS
LEARNING_RATE = 0.002  # so small that every round still moves the weights
RUN_FILE = f"""
name = "cuts"
bundle = "{{bundle}}"
[method]
name = "fedavg"
rounds = {ROUNDS}
batch_size = 0
learning_rate = {LEARNING_RATE}
[round]
min_devices = 2
quorum = 1.0
"""


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Another in each round of `make soak`."""
    return int(request.config.getoption("--hypothesis-seed", None) or 0)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Dataset]:
    rng = np.random.default_rng(7)
    found = {}
    for name in DEVICES:
        x, y = rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=4).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        found[name] = Dataset(x, y)
    return found


@pytest.fixture(params=["everything written is kept", "only what was synced is kept"])
def household(request: pytest.FixtureRequest, tmp_path: Path, regression: Bundle) -> Iterator[Household]:
    keeps = request.param.startswith("everything")
    house = Household(tmp_path, RUN_FILE.format(bundle=regression.path), keeps_unsynced=keeps)
    yield house
    house.end()


def test_power_cuts_change_nothing(
    household: Household, data: dict[str, Dataset], regression: Bundle, seed: int
) -> None:
    """All processes, the broker too, are killed at once, some while they start, and begin again in any order. A round
    that was said to be done is not lost, no step of a device is done twice or left out, and nobody ends by itself."""
    rng = random.Random(seed)
    everybody = ["broker", "aggregator", *DEVICES]
    for _ in range(CUTS):
        household.start(rng.sample(everybody, len(everybody)))
        live(household, rng)
        household.cut(rng)
        assert household.rounds_on_disk() >= household.rounds_said()
    household.start(rng.sample(everybody, len(everybody)))
    assert household.aggregator_code() == 0, household.logs()
    # A start that was cut before its first round was open left a folder, and no run to go on with.
    (run_dir,) = (path.parent for path in household.folder.glob("runs/cuts-*/open.json"))

    method = FedAvg(regression.shared_weights(), rounds=ROUNDS, batch_size=0, learning_rate=LEARNING_RATE)
    devices = Devices(regression, data)
    before = devices.carry_on(method, method.start(), ROUNDS - 1)
    undisturbed = devices.carry_on(method, before, 1)
    weights = load_tensors((run_dir / "weights.safetensors").read_bytes(), "weights")
    np.testing.assert_allclose(weights["w"], undisturbed.tensors["w"], rtol=0, atol=1e-6)
    assert np.abs(before.tensors["w"] - undisturbed.tensors["w"]).max() > 1e-4  # a round more or less would be seen
    for name in DEVICES:
        kept = Journal(household.folder / name, run_dir.name).read()
        assert kept is not None and kept.private["count"] == ROUNDS == devices.kept[name]["count"]


def live(household: Household, rng: random.Random) -> None:
    """Some of the life between two cuts."""
    if rng.random() < 0.4:
        household.wait_for_round(10**6, rng.uniform(0.0, 2.0))  # while they start
    else:
        household.wait_for_round(household.rounds_said() + rng.randint(1, 8), 120.0)
