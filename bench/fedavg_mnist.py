"""FedAvg on MNIST as McMahan et al. measured it: rounds until the averaged model reaches a test accuracy.

    python bench/fedavg_mnist.py --net 2nn --data mnist/
    python bench/fedavg_mnist.py --net cnn --data mnist/ --split shards

100 devices, 600 examples each, C = 0.1, B = 10, plain SGD (arXiv:1602.05629, tables 1 and 2). Everything but the
network is the real thing: exporter, programs, tasks, coordinator, fusion.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from harness import Row, Target, data_option, finish, options

from edgefl import bundle as bundles
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.methods.fedavg import FedAvg
from edgefl.runs.partition import PARTITIONS
from edgefl.runs.simulation import Device, Simulation
from edgefl_device.data import Dataset, Splits
from edgefl_device.sources import read_splits


@dataclass(frozen=True)
class Cell:
    """One cell of the paper's tables, and our learning rate. The paper tunes one per cell on test accuracy; so did
    we: of 0.05, 0.1, 0.2 and 0.3 for 2NN IID, 0.05 and 0.1 for 2NN shards, 0.1 and 0.2 for CNN IID. CNN shards is
    untuned."""

    model: str
    epochs: int
    target: float
    most_rounds: dict[str, float]  # split -> rounds in the paper
    learning_rate: dict[str, float]


CELLS = {
    "2nn": Cell("mnist-2nn", 1, 0.97, {"iid": 87, "shards": 664}, {"iid": 0.2, "shards": 0.1}),
    "cnn": Cell("mnist-cnn", 5, 0.99, {"iid": 20, "shards": 229}, {"iid": 0.2, "shards": 0.1}),
}
SPLITS = {"iid": {}, "shards": {"shards_per_device": 2}}
BATCH_SIZE, FRACTION = 10, 0.1
BUNDLE = "mnist"


def fleet_of(bundle: Bundle, splits: Splits, devices: int, split: str, *, seed: int, threads: int) -> Simulation:
    """The training data dealt out to devices that all have one bundle."""
    parts = PARTITIONS[split](splits.train.labels, devices, rng=np.random.default_rng(seed), **SPLITS[split])
    fleet = [Device(f"device-{i:03}", BUNDLE, {"train": splits.train.take(part)}) for i, part in enumerate(parts)]
    return Simulation({BUNDLE: bundle}, fleet, threads=threads)


def rounds_to(target: float, accuracies: Sequence[float]) -> float | None:
    """Where the best-so-far curve crosses `target`, interpolated between rounds as in the paper.

    `accuracies[i]` is the test accuracy after round i + 1. None when it never gets there.
    """
    best = np.maximum.accumulate(np.asarray(accuracies, np.float64))
    reached = np.flatnonzero(best >= target)
    if len(reached) == 0:
        return None
    i = int(reached[0])
    if i == 0:
        return 1.0
    return i + float((target - best[i - 1]) / (best[i] - best[i - 1]))


def run(fleet: Simulation, test: Dataset, method: FedAvg, fraction: float, target: float, seed: int) -> list[Row]:
    """Rounds until the target or the method's end: one row each, with seconds since the start."""
    rows: list[Row] = []
    started = time.monotonic()
    for done in fleet.rounds(method, RoundSettings(fraction=fraction), seed=seed):
        seconds = time.monotonic() - started
        accuracy, loss = fleet.evaluate(BUNDLE, done.state.tensors, test)
        rows.append({"round": done.round + 1, "accuracy": accuracy, "loss": loss, "seconds": seconds})
        print(
            f"round {done.round + 1}: accuracy {accuracy:.4f}, loss {loss:.4f}, "
            f"training loss {done.fused.metrics['train.loss']:.4f}, {seconds:.0f} s",
            file=sys.stderr,
        )
        if accuracy >= target:
            break
    return rows


@click.command(help=__doc__)
@click.option("--net", type=click.Choice(list(CELLS)), default="2nn", show_default=True)
@click.option("--split", type=click.Choice(list(SPLITS)), default="iid", show_default=True)
@click.option("--lr", type=float, help="Learning rate of the devices; default: the best found for this cell.")
@click.option("--rounds", type=int, help="Give up after so many; default: the paper's figure and a half.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of partition, sampling and shuffles.")
@click.option("--threads", type=int, default=1, show_default=True, help="Cores for one operator.")
@data_option
@options
def main(
    data: Path,
    form: str,
    quick: bool,
    net: str,
    split: str,
    lr: float | None,
    rounds: int | None,
    seed: int,
    threads: int,
) -> None:
    cell = CELLS[net]
    devices, epochs, fraction = (4, 1, 0.5) if quick else (100, cell.epochs, FRACTION)
    splits = read_splits(data)
    assert splits.test is not None
    if quick:
        splits = Splits(splits.train.take(np.arange(400)), splits.test.take(np.arange(500)))
    with tempfile.TemporaryDirectory() as folder:
        bundle = _export(cell.model, Path(folder) / f"{net}.bundle")
        fleet = fleet_of(bundle, splits, devices, split, seed=seed, threads=threads)
        weights = bundle.weights()
        method = FedAvg(
            initial={tensor.name: weights[tensor.name] for tensor in bundle.manifest.shared()},
            rounds=2 if quick else rounds or int(1.5 * cell.most_rounds[split]),
            epochs=epochs,
            batch_size=BATCH_SIZE,
            learning_rate=lr or cell.learning_rate[split],
            seed=seed,
        )
        rows = run(fleet, splits.test, method, fraction, cell.target, seed)
    reached = rounds_to(cell.target, [row["accuracy"] for row in rows])
    title = f"FedAvg, {net}, {split}, learning rate {method.learning_rate:g}"
    finish(title, rows, [Target(f"rounds to {cell.target:.0%}", reached, cell.most_rounds[split])], form)


def _export(model: str, out: Path) -> Bundle:
    from edgefl_exporter import export  # torch takes seconds to import; --help need not wait
    from edgefl_exporter.zoo import ZOO

    module, example = ZOO[model].make()
    export(module, example, out=out, name=model, programs=("train", "evaluate"))
    return bundles.read(out)


if __name__ == "__main__":
    main()
