"""FedMRL on CIFAR-10: is a small shared model worth its trouble to devices whose models differ?

    python bench/fedmrl_cifar.py --data cifar10/ --keep results/

Yi et al. 2024 (arXiv:2406.00488), section 5, with fewer rounds: N devices, 10 asked in a round, 2 classes each, the
same classes in training and test data, the paper's five CNNs by turns. Compared are FedMRL, each device alone, and
FedAvg of the small model; who is asked, batches, epochs and optimizer are the same for all. Accuracy is the mean over
devices, each on its own test data: "personal" as a device is right after it trained the last time, where the authors'
code measures; "fused" with what was fused last in place of what it trained, without training again. Everything but the
network is the real thing: exporter, programs, tasks, coordinator, fusion.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from harness import Row, Target, data_option, finish, options

from edgefl import bundle as bundles
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.data_contract import Normalisation
from edgefl.method import Ask, Fused, Method, State, Task
from edgefl.methods.fedavg import FedAvg
from edgefl.methods.fedmrl import FedMRL
from edgefl.runs.partition import alike, classes
from edgefl.runs.simulation import Device, Simulation
from edgefl.tensors import Tensors
from edgefl_device.data import Dataset, Splits
from edgefl_device.sources import read_splits

LOCAL = ("cnn1", "cnn2", "cnn3", "cnn4", "cnn5")  # device i has number i mod 5
SMALL = "cnn5"
TINY = "tiny"  # takes the place of them all in a smoke run
ASKED = 10
CLASSES_PER_DEVICE = 2
WIDTHS = (100, 250, 500)
FEDMRL, ALONE, FEDAVG = "FedMRL", "each alone", "FedAvg of the small model"
ROUNDS = {100: 40, 20: 8}  # by N: what the time allows; a device trains 4 times on average
GAIN = 0.02  # what FedMRL must gain over devices alone
NORMALISATION = Normalisation((0.5,), (0.25,))
HELD_OUT = 10  # with --held-out every so manyth training example of a device tests instead


@dataclass(frozen=True)
class Cell:
    """One row of the table, and all that decides its figures; `d1` features of the small model, 0 without one."""

    devices: int
    method: str
    d1: int
    rounds: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    held_out: bool

    @property
    def name(self) -> str:
        """Of the file that keeps the row."""
        return "-".join(str(value).replace(" ", "_") for value in asdict(self).values())


class Alone(msgspec.Struct, frozen=True):
    """No federation: the asked devices train, and nothing travels."""

    train: FedAvg  # whose task it is, but for what it loads and sends

    def start(self) -> State:
        return State(round=0, tensors={})

    def ask(self, state: State) -> Ask | None:
        if state.round >= self.train.rounds:
            return None
        return Ask((msgspec.structs.replace(self.train.train(state), load=(), send=()),), {})

    def advance(self, state: State, fused: Fused) -> State:
        return State(round=state.round + 1, tensors={})


class Tested(msgspec.Struct, frozen=True):
    """A method whose devices, having trained, evaluate what they then have."""

    method: Any

    def start(self) -> State:
        return self.method.start()

    def ask(self, state: State) -> Ask | None:
        ask = self.method.ask(state)
        return ask and msgspec.structs.replace(ask, tasks=(*ask.tasks, evaluation()))

    def advance(self, state: State, fused: Fused) -> State:
        return self.method.advance(state, fused)


def evaluation(*load: str) -> Task:
    return Task(program="evaluate", feed="test", load=load, batch_size=500)


def deal(splits: Splits, cell: Cell) -> list[dict[str, Dataset]]:
    """Training and test data of each device: the same classes in both, each example on one device."""
    assert splits.test is not None
    rng = np.random.default_rng(cell.seed)
    labels = splits.train.labels
    parts = classes(labels, cell.devices, CLASSES_PER_DEVICE, rng)
    if cell.held_out:
        test = [np.arange(len(part)) % HELD_OUT == 0 for part in parts]
        train = splits.train
        return [
            {"train": train.take(part[~out]), "test": train.take(part[out])}
            for part, out in zip(parts, test, strict=True)
        ]
    tests = alike(labels, parts, splits.test.labels, rng)
    return [
        {"train": splits.train.take(part), "test": splits.test.take(test)}
        for part, test in zip(parts, tests, strict=True)
    ]


def run(cell: Cell, made: Mapping[str, Bundle], splits: Splits) -> Row:
    """Train to the end of the budget, then evaluate on every device."""
    started = time.process_time()
    feeds, kinds = deal(splits, cell), list(made)
    fleet = Simulation(made, [Device(f"device-{i:03}", kinds[i % len(kinds)], feed) for i, feed in enumerate(feeds)])
    method = method_of(cell, made[kinds[0]])
    tensors: Tensors = {}
    trained: dict[str, float | None] = {}  # device -> its accuracy right after it trained, the last time
    for done in fleet.rounds(Tested(method), RoundSettings(fraction=ASKED / cell.devices), seed=cell.seed):
        tensors = done.state.tensors
        trained |= {name: accuracy(fleet.devices[name].metrics) for name in done.fused.devices}
        print(
            f"{cell.method} {cell.d1}, {cell.devices} devices: round {done.round + 1}, training loss "
            f"{done.fused.metrics['train.loss']:.3f}, {time.process_time() - started:.0f} s",
            file=sys.stderr,
        )
    task = evaluation(*(("*",) if tensors else ()))
    measured = [fleet.perform(device, [task], tensors).metrics for device in fleet.devices.values()]
    return {
        "devices": cell.devices,
        "method": cell.method,
        "d1": cell.d1 or None,
        "rounds": cell.rounds,
        "personal": mean_of(trained.values()),
        "fused": mean_of(accuracy(metrics) for metrics in measured),
        "inner head": mean_of(accuracy(metrics, "inner_correct") for metrics in measured),
        "upload MB": sum(array.nbytes for array in tensors.values()) / 1e6,
        "CPU s": time.process_time() - started,
    }


def method_of(cell: Cell, bundle: Bundle) -> Method:
    kind = FedMRL if cell.method == FEDMRL else FedAvg
    method = kind(
        initial=bundle.shared_weights(),
        rounds=cell.rounds,
        epochs=cell.epochs,
        batch_size=cell.batch_size,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
    )
    return Alone(method) if cell.method == ALONE else method


def accuracy(metrics: Mapping[str, float], correct: str = "correct") -> float | None:
    """None where the model has no such head."""
    counted = metrics.get(f"evaluate.{correct}")
    return None if counted is None else counted / metrics["evaluate.examples"]


def mean_of(values: Iterable[float | None]) -> float | None:
    """None where any of them is."""
    found = list(values)
    return None if None in found else float(np.mean(found))  # type: ignore[arg-type]


def bundles_for(cell: Cell, folder: Path, *, quick: bool) -> dict[str, Bundle]:
    """Architecture -> bundle, exported unless `folder` has it."""
    found = {}
    for kind in (TINY,) if quick else (SMALL,) if cell.method == FEDAVG else LOCAL:
        path = folder / f"{cell.method.replace(' ', '-')}-{kind}-{cell.d1}.bundle"
        found[kind] = bundles.read(path) if path.exists() else export_one(cell, kind, path)
    return found


def export_one(cell: Cell, kind: str, out: Path) -> Bundle:
    from edgefl_exporter import SGD, export  # torch takes seconds to import; --help need not wait
    from edgefl_exporter.methods import FedMRL
    from edgefl_exporter.zoo import ZOO
    from edgefl_exporter.zoo.classifiers import cnn5, fedmrl_cnn

    print(f"exporting {out.stem}", file=sys.stderr)
    common: dict[str, Any] = {
        "out": out,
        "name": out.stem,
        "programs": ("train", "evaluate"),
        "normalisation": NORMALISATION,
        "optimizer": SGD(**FedMRL.sgd()),
        "clip_norm": FedMRL.defaults["clip_norm"],
    }
    local = fedmrl_cnn(4, 20) if kind == TINY else ZOO[kind].make()
    if cell.method == ALONE:
        return export(*local, private=("*",), **common)
    small = fedmrl_cnn(4, 20, cell.d1) if kind == TINY else cnn5(cell.d1)
    return (
        export(*small, **common) if cell.method == FEDAVG else export(*local, method=FedMRL(small=small[0]), **common)
    )


def cells(devices: Sequence[int], widths: Sequence[int], **same: Any) -> list[Cell]:
    """The rows of the table; `rounds` None for the number chosen for each N."""
    rounds = same.pop("rounds")
    what = [(ALONE, 0), (FEDAVG, max(widths)), *((FEDMRL, width) for width in widths)]
    return [Cell(n, method, d1, rounds or ROUNDS.get(n, 40), **same) for n in devices for method, d1 in what]


def targets(rows: Sequence[Row]) -> list[Target]:
    """What FedMRL gains with the most devices, at the width that does best."""
    most = max(row["devices"] for row in rows)

    def best(method: str, what: str) -> float:
        return float(max(row[what] for row in rows if (row["devices"], row["method"]) == (most, method)))

    gains = [
        ("each alone", best(ALONE, "personal"), GAIN),
        ("the model that FedAvg fused", best(FEDAVG, "fused"), 0.0),
        ("that model, trained once more by its device", best(FEDAVG, "personal"), 0.0),
    ]
    found = best(FEDMRL, "personal")
    return [Target(f"N = {most}: FedMRL - {what}", found - other, bound, at_least=True) for what, other, bound in gains]


@click.command(help=__doc__)
@click.option("--devices", type=int, multiple=True, default=tuple(ROUNDS), show_default=True, help="N; several times.")
@click.option("--d1", "widths", type=int, multiple=True, default=WIDTHS, show_default=True, help="Several times.")
@click.option("--rounds", type=int, help=f"Default: {', '.join(f'{r} of {n} devices' for n, r in ROUNDS.items())}.")
@click.option("--epochs", type=int, default=1, show_default=True)
@click.option("--batch-size", type=int, default=10, show_default=True)
@click.option("--lr", type=float, default=0.01, show_default=True, help="The paper's.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of partition, sampling and shuffles.")
@click.option("--held-out", is_flag=True, help="Test on a tenth of the training data: to choose by, without the test.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep bundles and finished rows there, and go on.")
@data_option
@options
def main(
    data: Path,
    form: str,
    quick: bool,
    devices: tuple[int, ...],
    widths: tuple[int, ...],
    rounds: int | None,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    held_out: bool,
    keep: Path | None,
) -> None:
    splits = read_splits(data)
    if quick:
        devices, widths, rounds, splits = (10,), (100,), 1, few(splits)
    same = {"epochs": epochs, "batch_size": batch_size, "learning_rate": lr, "seed": seed, "held_out": held_out}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for cell in cells(devices, widths, rounds=rounds, **same):
            kept = folder / f"{cell.name}.json"
            if not kept.exists():
                row = run(cell, bundles_for(cell, folder, quick=quick), splits)
                kept.write_text(json.dumps(row))
            rows.append(json.loads(kept.read_text()))
    finish(f"FedMRL on CIFAR-10, seed {seed}, {epochs} epochs, batches of {batch_size}", rows, targets(rows), form)


def few(splits: Splits) -> Splits:
    """For a smoke run: a few examples, as CIFAR-10's in shape whatever the data set is."""
    assert splits.test is not None
    rng = np.random.default_rng(0)
    made = [Dataset(rng.integers(0, 256, (count, 3, 32, 32), np.uint8), np.arange(count) % 10) for count in (200, 100)]
    return Splits(*made)


if __name__ == "__main__":
    main()
