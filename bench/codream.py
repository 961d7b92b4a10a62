"""CoDream: devices with four architectures learn from each other's dreams, beside each of them alone.

    python bench/codream.py --data mnist/
    python bench/codream.py --data cifar10/
    python bench/codream.py --data mnist/ --savings

4 devices with 50 images each (MNIST) or 1,000 (CIFAR-10), dealt out evenly and with shares drawn from Dirichlet(0.1).
"alone" are the same devices from the same start with as many passes over their own images, and without dreams; what
CoDream's devices do besides is to dream and to learn from dreams. FedAvg has one architecture for all and the same
number of passes. "On noise": as CoDream, but that the first dreams, of noise, stay as they are. Figures are means over
seeds: of which images, who has them, and the shuffles. Accuracy is on 5,000 test images: the mean over devices, the
least device, the mean of all devices' probabilities ("together"), and the student, which sees dreams alone. Bytes are
those of tensors, of one device in one epoch, or one round of FedAvg. --savings: what each way to send less costs.
Everything but the network is the real thing: exporter, programs, tasks, coordinator, fusion.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import msgspec
import numpy as np
from harness import Row, Target, data_option, finish, options

from edgefl import bundle as bundles
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.data_contract import Normalisation
from edgefl.method import State, Task
from edgefl.methods.codream import CoDream
from edgefl.methods.fedavg import FedAvg
from edgefl.runs.partition import dirichlet, iid
from edgefl.runs.simulation import Device, Simulation
from edgefl.tensors import Array, Tensors
from edgefl_device.data import Dataset, Splits
from edgefl_device.sources import read_splits
from edgefl_device.work.private import Private
from edgefl_device.work.student import Student

DEVICES, ALPHA = 4, 0.1
LEAST = 10  # images that a device has at least
TESTS = 5_000
MIB = 2**20
ALONE, CODREAM, FEDAVG = "each alone", "CoDream", "FedAvg"
IID, UNEVEN = "IID", f"Dirichlet {ALPHA}"
GAIN = 5.0  # points that CoDream is to gain over devices alone, where data are even
BYTES = 85.0  # MiB of a device in an epoch, both ways: FedAvg of ResNet-18


@dataclass(frozen=True)
class Setting:
    """What a data set decides. `models`: of the devices; `student`: on the aggregator, and FedAvg's `common` one."""

    models: tuple[str, ...]
    student: str
    common: str
    examples: int
    normalisation: Normalisation
    learning_rate: float
    codream: dict[str, Any]
    gain: float  # points, of CoDream over each alone, evenly dealt


SETTINGS = {
    (28, 28): Setting(
        models=("mnist-2nn", "lenet5", "mnist-resnet8", "mnist-cnn-gn"),
        student="mnist-cnn-gn",
        common="mnist-cnn-gn",
        examples=50,
        normalisation=Normalisation((0.1307,), (0.3081,)),
        learning_rate=1e-3,
        codream={
            "epochs": 8,
            "warm_up": 40,
            "dreams": 128,
            "dream_steps": 40,
            "dream_rate": 0.1,
            "buffer": 640,
            "distill_epochs": 10,
            "distill_batch_size": 64,
            "train_epochs": 4,
            "batch_size": 10,
        },
        gain=GAIN,
    ),
    (3, 32, 32): Setting(
        models=("resnet8", "wrn-16-1", "vgg11-small", "mobilenetv2-small"),
        student="resnet8-gn",
        common="resnet8",
        examples=1000,
        normalisation=Normalisation((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
        learning_rate=2e-3,
        codream={
            "epochs": 5,
            "warm_up": 8,
            "dreams": 128,
            "dream_steps": 40,
            "dream_rate": 0.1,
            "total_variation": 30.0,
            "buffer": 512,
            "distill_epochs": 5,
            "distill_batch_size": 64,
            "distill_rate": 1e-3,
            "train_epochs": 1,
            "batch_size": 25,
        },
        gain=0.0,
    ),
}
PLAIN = {"encoding": "float32", "dreams_as": "float32", "seeded": False, "gradient_scale": 1.0}
NOISE, STILL = "CoDream on noise", {"dream_steps": 1, "dream_rate": 1e-9}
DEFAULTS = "float16, uint8, seed (defaults)"
FEW_EXCHANGES = {"local_steps": 5}
SAVINGS: dict[str, dict[str, Any]] = {
    "plain float32": PLAIN,
    "gradients as float16": PLAIN | {"encoding": "float16", "gradient_scale": 1024.0},
    "dreams as uint8": PLAIN | {"dreams_as": "uint8"},
    "dreams advanced on the device": PLAIN | {"dreams_as": "change"},
    "a seed for the first dreams": PLAIN | {"seeded": True},
    "5 local steps": PLAIN | FEW_EXCHANGES,
    DEFAULTS: {},
    "all of them, and 5 local steps": FEW_EXCHANGES,
}


@dataclass(frozen=True)
class Cell:
    """One run: a method, how images are dealt, and the seed. `settings` are in place of the data set's own."""

    method: str
    partition: str
    seed: int
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Of the file that keeps what the run ends with."""
        settings = (f"{key}={value}" for key, value in sorted(self.settings.items()))
        return "-".join([self.method, self.partition, str(self.seed), *settings]).replace(" ", "_")


@dataclass(frozen=True)
class Found:
    """What a run ends with. Accuracies in %; bytes of one device in one epoch, or in FedAvg's one round."""

    devices: tuple[float, ...]
    together: float
    student: float | None
    down: float
    up: float
    finite: bool
    cpu_s: float


@dataclass(frozen=True)
class Bench:
    """What all runs share: the data set, and the folder of bundles and finished runs."""

    data: Path
    folder: Path
    quick: bool

    def setting(self, splits: Splits) -> Setting:
        setting = SETTINGS[splits.train.features.shape[1:]]
        if self.quick:
            first = setting.models[0]
            return replace(setting, models=(first,) * DEVICES, student=first, common=first)
        return setting

    def export(self) -> None:
        """Every bundle that the data set's setting names, to the folder."""
        from edgefl_exporter import Adam, export  # torch takes seconds to import; --help need not wait
        from edgefl_exporter.methods import CoDream, FedAvg
        from edgefl_exporter.zoo import ZOO

        setting = self.setting(read_splits(self.data))
        common = {
            "programs": ("train", "evaluate", "predict"),
            "normalisation": setting.normalisation,
            "optimizer": Adam(learning_rate=setting.learning_rate),
        }
        for model in sorted({*setting.models, setting.student, setting.common}):
            for method in CoDream(dreams=setting.codream["dreams"]), FedAvg():
                path = self.path(method.name, model)
                if (method.name == "codream" or model == setting.common) and not path.exists():
                    print(f"exporting {model} for {method.name}", file=sys.stderr)
                    export(*ZOO[model].make(), out=path, name=model, method=method, **common)

    def path(self, method: str, model: str) -> Path:
        return self.folder / f"{method}-{model}.bundle"

    def found(self, cell: Cell) -> Found:
        """What the run ends with, of the folder; a process of its own where that has not got it."""
        kept = self.folder / f"{cell.file}.json"
        if not kept.exists():
            words = ["--data", str(self.data), "--keep", str(self.folder), "--only", msgspec.json.encode(cell).decode()]
            subprocess.run([sys.executable, __file__, *words, *(["--quick"] if self.quick else [])], check=True)
        return msgspec.json.decode(kept.read_bytes(), type=Found)

    def keep(self, cell: Cell) -> None:
        """Carry out one run, and put what it ends with into the folder."""
        (self.folder / f"{cell.file}.json").write_bytes(msgspec.json.encode(self.run(cell)))

    def run(self, cell: Cell) -> Found:
        """From the first round to the test after the last."""
        started = time.process_time()
        splits = read_splits(self.data)
        setting = self.setting(splits)
        fedavg = cell.method == FEDAVG
        models = (setting.common,) * DEVICES if fedavg else setting.models
        names = set(models) if fedavg else {*models, setting.student}
        made = {name: bundles.read(self.path("fedavg" if fedavg else "codream", name)) for name in names}
        test = _test(splits, 100 if self.quick else TESTS)
        devices = [
            Device(f"device-{i}", model, {"train": own, "test": test})
            for i, (model, own) in enumerate(zip(models, _deal(splits.train, setting.examples, cell), strict=True))
        ]
        with tempfile.TemporaryDirectory() as kept:
            fleet = Simulation(made, devices, kept=Path(kept))
            method = self.method(cell, setting, made)
            down, up, state = _carry_out(fleet, method, cell)
        student = None
        if isinstance(method, CoDream):
            predicted = [_predict(fleet, device) for device in devices]
            if cell.method == CODREAM:
                private = Private(method.student_in(state.tensors))
                student = _predict(fleet, Device("student", setting.student, devices[0].feeds, private=private))
        else:
            predicted = [_predict(fleet, devices[0], state.tensors)]
        everything = [*predicted, *([] if student is None else [student])]
        return Found(
            devices=tuple(_accuracy(p, test) for p in predicted),
            together=_accuracy(np.mean(predicted, axis=0), test),
            student=None if student is None else _accuracy(student, test),
            down=down,
            up=up,
            finite=all(bool(np.isfinite(p).all()) for p in everything),
            cpu_s=time.process_time() - started,
        )

    def method(self, cell: Cell, setting: Setting, made: Mapping[str, Bundle]) -> CoDream | FedAvg:
        settings = setting.codream | cell.settings
        if self.quick:
            settings |= {"epochs": 1, "warm_up": 1, "dream_steps": 5, "distill_epochs": 1, "train_epochs": 1}
        if cell.method == FEDAVG:  # as many passes over the images as the others
            passes = settings["warm_up"] + settings["epochs"] * settings["train_epochs"]
            return FedAvg(
                initial=made[setting.common].shared_weights(),
                rounds=passes // settings["train_epochs"],
                epochs=settings["train_epochs"],
                batch_size=settings["batch_size"],
                seed=cell.seed,
            )
        student = made[setting.student]
        alone = cell.method == ALONE
        initial = student.shared_weights()
        return CoDream(
            initial=initial, student=Student(student), alone=alone, evaluate=False, seed=cell.seed, **settings
        )


def _carry_out(fleet: Simulation, method: CoDream | FedAvg, cell: Cell) -> tuple[float, float, State]:
    """All rounds; bytes to and from a device in the last epoch, or FedAvg's last round, and the state after it."""
    started, down, up, state = time.monotonic(), 0.0, 0.0, method.start()
    work = method.student.carry_out if isinstance(method, CoDream) else None
    for done in fleet.rounds(method, RoundSettings(), seed=cell.seed, work=work):
        state = done.state
        if isinstance(method, CoDream) and method.place(done.round).phase in ("dream", "label"):
            continue
        traffic = fleet.take_traffic()
        down, up = traffic.down / DEVICES, traffic.up_total / DEVICES
        figures = " ".join(f"{k} {v:.3g}" for k, v in done.fused.metrics.items() if k.endswith(("loss", "distance")))
        name = f"{cell.name or cell.method}, {cell.partition}, seed {cell.seed}"
        print(f"{name}: round {done.round}, {figures}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return down, up, state


def _deal(train: Dataset, examples: int, cell: Cell) -> list[Dataset]:
    """Each device's own images."""
    rng = np.random.default_rng(cell.seed)
    chosen = train.take(rng.permutation(len(train))[: DEVICES * examples])
    if cell.partition == IID:
        parts = iid(chosen.labels, DEVICES, rng)
    else:
        parts = dirichlet(chosen.labels, DEVICES, ALPHA, rng, min_examples=LEAST)
    return [chosen.take(part) for part in parts]


def _test(splits: Splits, count: int) -> Dataset:
    assert splits.test is not None
    return splits.test.take(np.random.default_rng(0).permutation(len(splits.test))[:count])


def _predict(fleet: Simulation, device: Device, loaded: Tensors = MappingProxyType({})) -> Array:
    """Probabilities [tests, classes] of the device's model, with `loaded` in place of its own tensors."""
    task = Task(program="predict", feed="test", load=("*",) if loaded else (), batch_size=250, send=("logits",))
    logits = fleet.perform(device, [task], loaded).tensors["logits"].astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))


def _accuracy(probabilities: Array, test: Dataset) -> float:
    """In %."""
    return float(100 * np.mean(probabilities.argmax(axis=1) == test.labels))


def row(cell: Cell, runs: Sequence[Found]) -> Row:
    """One line of the table: means over seeds, and the mean device of each seed."""
    means = [float(np.mean(run.devices)) for run in runs]
    students = [run.student for run in runs if run.student is not None]
    return {
        "images": cell.partition,
        "method": cell.name or cell.method,
        "devices %": float(np.mean(means)),
        "seeds": " ".join(f"{value:.1f}" for value in means),
        "least %": float(np.mean([min(run.devices) for run in runs])),
        "together %": float(np.mean([run.together for run in runs])),
        "student %": float(np.mean(students)) if students else None,
        "MiB down": float(np.mean([run.down for run in runs])) / MIB,
        "MiB up": float(np.mean([run.up for run in runs])) / MIB,
        "CPU s": float(np.mean([run.cpu_s for run in runs])),
    }


def targets(found: Mapping[tuple[str, str], Sequence[Found]], gain: float) -> list[Target]:
    """`found`: by partition and method, seed by seed."""
    made = []
    for partition in (IID, UNEVEN):
        dreams, alone = ([float(np.mean(run.devices)) for run in found[partition, m]] for m in (CODREAM, ALONE))
        gains = np.subtract(dreams, alone)
        if partition == IID:
            made.append(
                Target(f"{partition}: points that CoDream gains over each alone", float(gains.mean()), gain, True)
            )
        made.append(Target(f"{partition}: points that it gains on its worst seed", float(gains.min()), 0.0, True))
    runs = [run for runs in found.values() for run in runs]
    most = max(run.down + run.up for (_, method), runs in found.items() if method == CODREAM for run in runs)
    made.append(Target("MiB of a device in an epoch, down and up", most / MIB, BYTES))
    made.append(Target("runs that end in NaN", float(sum(not run.finite for run in runs)), 0.0))
    return made


@click.command(help=__doc__)
@click.option("--savings", is_flag=True, help="Accuracy against bytes, for each way to send less; evenly dealt.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True, help="Runs at the same time.")
@click.option("--set", "changes", multiple=True, help="A setting of CoDream in place of its own, e.g. buffer=640.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep bundles and finished runs there, and go on.")
@click.option("--only", hidden=True, help="One run, as JSON: what a process of this benchmark does.")
@data_option
@options
def main(
    data: Path,
    form: str,
    quick: bool,
    only: str | None,
    savings: bool,
    seeds: int,
    processes: int,
    changes: tuple[str, ...],
    keep: Path | None,
) -> None:
    if only is not None:
        assert keep is not None
        Bench(data, keep, quick).keep(msgspec.json.decode(only, type=Cell))
        return
    changed = {key: json.loads(value) for key, _, value in (change.partition("=") for change in changes)}
    seeds = 1 if quick else seeds
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(data, folder, quick)
        bench.export()
        if savings:
            lines = [Cell(CODREAM, IID, 0, name, changed | more) for name, more in SAVINGS.items()]
        else:
            lines = [
                Cell(method, partition, 0, name, changed | more)
                for partition in (IID, UNEVEN)
                for method, name, more in (
                    (ALONE, "", {}),
                    (CODREAM, "", {}),
                    (CODREAM, NOISE, STILL),
                    (FEDAVG, "", {}),
                )
            ]
        cells = [replace(line, seed=seed) for line in lines for seed in range(seeds)]
        with ThreadPoolExecutor(processes) as pool:
            all_runs = list(pool.map(bench.found, cells))
    runs = [all_runs[i : i + seeds] for i in range(0, len(cells), seeds)]
    rows = [row(line, found) for line, found in zip(lines, runs, strict=True)]
    setting = bench.setting(read_splits(data))
    if savings:
        default = rows[list(SAVINGS).index(DEFAULTS)]
        made = [Target("MiB of a device in an epoch, down and up", default["MiB down"] + default["MiB up"], BYTES)]
    else:
        made = targets(
            {(c.partition, c.name or c.method): found for c, found in zip(lines, runs, strict=True)}, setting.gain
        )
    finish(f"CoDream on {data.name}, {DEVICES} devices x {setting.examples} images, {seeds} seeds", rows, made, form)


if __name__ == "__main__":
    main()
