"""The methods beside each other: MNIST, two classes for each device, the same budget for all.

    python bench/methods.py --data mnist/
    python bench/methods.py --data mnist/ --only SCAFFOLD --held-out

50 devices with about 100 examples each, 10 of them asked in a round, five epochs of plain SGD in batches of 20, and
FedAvg's 2NN (784-200-200-10); who is asked, what they have and how they shuffle is the same for all. "global" is the
accuracy of one model for everybody on the whole test set, the mean of the last rounds, since it moves from round to
round where data are so uneven. "own" is the mean over devices of what each then predicts with, on test data of its own
two classes, each test example on one device: the global model, or its own where the method keeps one. Everything but
the network is the real thing: exporter, programs, tasks, coordinator, fusion. Bytes are those of the tensors, of one
device in one round.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from fedavg_mnist import rounds_to
from harness import Row, Target, data_option, finish, options

from edgefl.aggregator.checks import reply_names
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.method import Task
from edgefl.methods import METHODS
from edgefl.runs.partition import classes
from edgefl.runs.simulation import Device, Simulation
from edgefl_device.data import Dataset, Splits
from edgefl_device.sources import read_splits

DEVICES, ASKED, CLASSES, ROUNDS = 50, 10, 2, 100
EXAMPLES = 5_000  # of MNIST's 60,000: with all of them two classes are easy for a device alone
EPOCHS, BATCH_SIZE = 5, 20
LAST = 10  # the global accuracy is the mean of the last so many rounds
TARGET = 0.9
HELD_OUT = 10_000  # with --held-out so many training examples that no device has test instead
QUICK = ("FedAvg", "FedAdam", "FedPer", "each alone")  # of each kind one, with two bundles
SMALL = 64  # features of FedMRL's small model, 784-64-10


@dataclass(frozen=True)
class Entry:
    """One row: a method with its settings, the bundle that it needs, and whether everybody ends with one model."""

    method: str
    bundle: str = "fedavg"
    learning_rate: float = 0.1
    settings: dict[str, Any] = field(default_factory=dict)
    one_model: bool = True


# Chosen at 50 rounds on training data that no device has (--held-out): learning rates of 0.05, 0.1, 0.2 and 0.4, mu of
# 0.01, 0.1 and 1, server learning rates of 0.01, 0.03 and 0.1, lambda of 1 and 10, not all of them with each other.
ENTRIES = {
    "FedAvg": Entry("fedavg", learning_rate=0.2),
    "FedProx": Entry("fedprox", "fedprox", 0.2, {"proximal": 0.01}),
    "FedAdam": Entry("fedadam", "fedavg", 0.2, {"server_learning_rate": 0.03}),
    "FedYogi": Entry("fedyogi", "fedavg", 0.2, {"server_learning_rate": 0.03}),
    "SCAFFOLD": Entry("scaffold", "scaffold", 0.1, {"devices": DEVICES}),
    "LG-FedAvg": Entry("lg_fedavg", settings={"share": ["5.*"]}, one_model=False),
    "FedPer": Entry("fedavg", settings={"share": ["1.*", "3.*"]}, one_model=False),
    "FedProto": Entry("fedproto", "fedproto", settings={"prototype_weight": 1.0}, one_model=False),
    "FedMRL": Entry("fedmrl", "fedmrl", one_model=False),
    "each alone": Entry("fedproto", "fedproto", settings={"prototype_weight": 0.0}, one_model=False),
}


def deal(splits: Splits, devices: int, seed: int, *, held_out: bool) -> tuple[list[dict[str, Dataset]], Dataset]:
    """Each device's training and test data, of the same two classes, and everybody's test data."""
    assert splits.test is not None
    order = np.random.default_rng(seed).permutation(len(splits.train))
    train, test = splits.train.take(order[:EXAMPLES]), splits.test
    if held_out:
        test = splits.train.take(order[-HELD_OUT:])
    # `classes` draws who holds which class before it looks at a label: equal seeds give equal classes.
    parts = [classes(d.labels, devices, CLASSES, np.random.default_rng(seed)) for d in (train, test)]
    dealt = [{"train": train.take(a), "test": test.take(b)} for a, b in zip(*parts, strict=True)]
    assert all(set(d["train"].labels.tolist()) == set(d["test"].labels.tolist()) for d in dealt)
    return dealt, test


def run(
    name: str, entry: Entry, bundle: Bundle, dealt: Sequence[dict[str, Dataset]], test: Dataset, **budget: Any
) -> Row:
    """One row of the table. `budget`: the settings that all methods have."""
    started = time.process_time()
    fleet = Simulation({name: bundle}, [Device(f"device-{i:02}", name, feeds) for i, feeds in enumerate(dealt)])
    settings = {key: _value(value) for key, value in (budget | entry.settings).items()}
    method = METHODS[entry.method](initial=bundle.shared_weights(), **settings)
    ask = method.ask(method.start())
    assert ask is not None
    accuracies: list[float] = []
    announced: dict[str, Any] = {}
    for done in fleet.rounds(method, RoundSettings(fraction=ASKED / len(dealt)), seed=method.seed):
        announced = {tensor: done.state.tensors[tensor] for tensor in ask.tensors}
        if entry.one_model:
            accuracies.append(fleet.evaluate(name, announced, test)[0])
        if (done.round + 1) % 10 == 0:
            shown = f"accuracy {accuracies[-1]:.4f}, " if accuracies else ""
            seconds = time.process_time() - started
            print(f"{name}: round {done.round + 1}: {shown}{done.fused.metrics}, {seconds:.0f} s", file=sys.stderr)
    task = Task(program="evaluate", feed="test", load=("*",), batch_size=500)
    own = [fleet.perform(device, [task], announced).metrics for device in fleet.devices.values()]
    expected = reply_names(ask, bundle.manifest).values()
    return {
        "method": name,
        "global": float(np.mean(accuracies[-LAST:])) if entry.one_model else None,
        f"rounds to {TARGET:.0%}": rounds_to(TARGET, accuracies) if entry.one_model else None,
        "own": float(np.mean([m["evaluate.correct"] / m["evaluate.examples"] for m in own])),
        "rounds": method.rounds,
        "down_bytes": sum(array.nbytes for array in ask.tensors.values()),
        "up_bytes": sum(int(np.prod([np.dtype(dtype).itemsize, *shape])) for dtype, shape in expected),
        "lr": method.learning_rate,
        "settings": ", ".join(f"{k} {v}" for k, v in entry.settings.items()),
        "cpu_s": time.process_time() - started,
    }


def targets(rows: Sequence[Row]) -> list[Target]:
    """What each method promises over the plain way: a better model for everybody, or a better one of one's own."""
    by_name = {row["method"]: row for row in rows}
    promises = {name: ("FedAvg", "global") for name in ("FedProx", "FedAdam", "FedYogi", "SCAFFOLD")}
    promises |= {name: ("each alone", "own") for name in ("LG-FedAvg", "FedPer", "FedProto", "FedMRL")}
    return [
        Target(f"{name} - {plain}, {column}", by_name[name][column] - by_name[plain][column], 0.0, at_least=True)
        for name, (plain, column) in promises.items()
        if name in by_name and plain in by_name
    ]


def _value(value: Any) -> Any:
    """As a run file would be read: lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


def export_for(name: str, out: Path) -> Bundle:
    """The bundle called `name` in ENTRIES."""
    import torch  # takes seconds to import; --help need not wait
    from torch import nn

    from edgefl_exporter import SGD, export
    from edgefl_exporter.methods import FedMRL
    from edgefl_exporter.zoo import ZOO

    module, example = ZOO["mnist-2nn"].make()
    common = {"out": out, "name": name, "programs": ("train", "evaluate")}
    if name != "fedmrl":
        return export(module, example, method=name, **common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = nn.Sequential(nn.Flatten(), nn.Linear(784, SMALL), nn.ReLU(), nn.Linear(SMALL, 10))
    return export(module, example, method=FedMRL(small=small), optimizer=SGD(), **common)


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice(list(ENTRIES)), help="Only these; several times.")
@click.option("--rounds", type=int, default=ROUNDS, show_default=True)
@click.option("--lr", type=float, help="In place of each method's own.")
@click.option("--set", "changes", multiple=True, help="A setting in place of each method's own, e.g. proximal=0.1.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of partition, sampling and shuffles.")
@click.option("--held-out", is_flag=True, help="Test on training data that no device has: to choose settings.")
@data_option
@options
def main(
    data: Path,
    form: str,
    quick: bool,
    only: Sequence[str],
    rounds: int,
    lr: float | None,
    changes: Sequence[str],
    seed: int,
    held_out: bool,
) -> None:
    splits = read_splits(data)
    devices = DEVICES
    if quick and splits.test is not None:
        splits, devices, rounds = Splits(splits.train.take(np.arange(600)), splits.test.take(np.arange(500))), 10, 2
    changed = {key: float(value) for key, _, value in (change.partition("=") for change in changes)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Bundle] = {}
        for name in only or (QUICK if quick else ENTRIES):
            entry = replace(ENTRIES[name], settings=ENTRIES[name].settings | changed)
            if entry.bundle not in made:
                print(f"exporting for {name}", file=sys.stderr)
                made[entry.bundle] = export_for(entry.bundle, Path(folder) / f"{entry.bundle}.bundle")
            budget = {"rounds": rounds, "epochs": EPOCHS, "batch_size": BATCH_SIZE}
            rate = lr or entry.learning_rate
            feeds, test = deal(splits, devices, seed, held_out=held_out)
            rows.append(run(name, entry, made[entry.bundle], feeds, test, learning_rate=rate, seed=seed, **budget))
            print(rows[-1], file=sys.stderr)
    finish(f"MNIST, {devices} devices with {CLASSES} classes each, {ASKED} asked", rows, targets(rows), form)


if __name__ == "__main__":
    main()
