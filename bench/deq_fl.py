"""DEQ-FL: devices with different budgets of solver steps, fused by each weight rule, beside an explicit network.

    python bench/deq_fl.py --data mnist/
    python bench/deq_fl.py --data cifar10/

10 devices with max_steps 2, 4, 8, 16 and 32 by turns, label shares drawn from Dirichlet(alpha), all asked in every
round. Figures are means over seeds: of which examples, who has them, and the shuffles. Accuracy is the fused model's on
2,000 test examples, solved with 32 steps, and with each device's own; 500 others are held out for learned weights.
Memory is what a process of its own grows by while it trains. Everything but the network is the real thing: exporter,
programs, tasks, coordinator, fusion.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from harness import Row, Target, data_option, finish, options

from edgefl.aggregator.fusion import fusing
from edgefl.aggregator.learned import learning
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.methods.deq_fl import DeqFl
from edgefl.methods.fedavg import FedAvg
from edgefl.protocol import tensors_to_bytes
from edgefl.runs.partition import dirichlet
from edgefl.runs.simulation import Device, Simulation
from edgefl_device.data import Splits
from edgefl_device.sources import read_splits
from edgefl_device.work.evaluate import HeldOut

BUDGETS = (2, 4, 8, 16, 32)
DEVICES, BATCH_SIZE, CLIP_NORM = 10, 20, 1.0
LEARNING_STEPS = 10
RULES = ("examples", "examples*steps", "examples/residual", "learned")
WORKER = Path(__file__).with_name("doctor_memory_worker.py")


@dataclass(frozen=True)
class Net:
    """A model of the zoo, or so many layers of deq_stack.py, and the learning rate of its devices."""

    model: str
    learning_rate: float
    layers: int = 0


@dataclass(frozen=True)
class Cell:
    """One data set: the equilibrium, the explicit networks that it stands beside, of which the first is to be beaten in
    bytes, and how much all of them may train."""

    equilibrium: Net
    explicit: tuple[Net, ...]
    examples: int
    rounds: int


CELLS = {
    (28, 28): Cell(
        Net("deq-conv", 0.2), (Net("stack of 8", 0.2, layers=8), Net("stack of 1", 0.2, layers=1)), 2000, 12
    ),
    (3, 32, 32): Cell(
        Net("deq-conv-cifar", 0.1), (Net("stack of 8", 0.1, layers=8), Net("stack of 1", 0.1, layers=1)), 1500, 8
    ),
}


@dataclass(frozen=True)
class Fused:
    """A fused model: accuracy (0 to 1) with 32 steps and with each budget, bytes of its tensors, and the last
    round's weights."""

    generous: float
    by_budget: tuple[float, ...]
    size_bytes: int
    weights: tuple[float, ...]

    @property
    def counting(self) -> float:
        """1 / sum_k a_k^2: as how many devices of equal weight those of the last round count (Kish 1965)."""
        return float(1 / np.sum(np.square(self.weights)))


class Bench:
    """One seed's data and fleet, for one bundle."""

    def __init__(self, bundle: Bundle, splits: Splits, examples: int, tests: int, alpha: float, seed: int) -> None:
        assert splits.test is not None
        rng = np.random.default_rng(seed)
        train = splits.train.take(rng.permutation(len(splits.train))[:examples])
        others = np.random.default_rng(0).permutation(len(splits.test))
        self.test = splits.test.take(others[:tests])
        self.held_out = splits.test.take(others[tests : tests + tests // 4])
        self.bundle, self.seed = bundle, seed
        settings = {i.name for p in bundle.manifest.programs.values() for i in p.inputs if i.source == "setting"}
        self.solves = "max_steps" in settings
        devices = [
            Device(f"device-{i}", "net", {"train": train.take(part)}, self.budget(BUDGETS[i % len(BUDGETS)]))
            for i, part in enumerate(dirichlet(train.labels, DEVICES, alpha, rng))
        ]
        self.fleet = Simulation({"net": bundle}, devices)

    def budget(self, steps: int) -> dict[str, float]:
        """A device's own settings."""
        return {"max_steps": float(steps)} if self.solves else {}

    def run(self, net: Net, rule: str, rounds: int) -> Fused:
        """Carry the method to its end."""
        kind = DeqFl if self.solves else FedAvg
        method = kind(
            initial=self.bundle.shared_weights(),
            rounds=rounds,
            batch_size=BATCH_SIZE,
            learning_rate=net.learning_rate,
            weight=rule,
            seed=self.seed,
        )
        fuse = fusing
        if rule == "learned":
            held_out = HeldOut(self.bundle, self.held_out, batch_size=250, settings=self.budget(max(BUDGETS)))
            fuse = learning(held_out, steps=LEARNING_STEPS)
        *_, last = self.fleet.rounds(method, RoundSettings(), seed=self.seed, fusing=fuse)
        tensors = last.state.tensors
        steps = BUDGETS if self.solves else BUDGETS[-1:]
        found = [self.fleet.evaluate("net", tensors, self.test, self.budget(k))[0] for k in steps]
        weights = tuple(last.fused.weights.values())
        print(
            f"{net.model}, {rule}, seed {self.seed}: {' '.join(f'{x:.4f}' for x in found)}, "
            f"training loss {last.fused.metrics['train.loss']:.3f}, weights {' '.join(f'{w:.2f}' for w in weights)}",
            file=sys.stderr,
        )
        return Fused(found[-1], tuple(found), len(tensors_to_bytes(tensors)), weights)


def memory(bundle: Bundle, settings: dict[str, float]) -> float:
    """By how many MB a process grows that loads the bundle and trains five batches."""
    given = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, str(WORKER), str(bundle.path), str(BATCH_SIZE), *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout) / 1e6


def row(net: Net, rule: str, runs: Sequence[Fused], plain: Sequence[Fused], grown: tuple[float, float]) -> Row:
    """One line of the table; accuracies in %, gains over `plain` in points, seed by seed."""
    generous = 100 * np.array([run.generous for run in runs])
    own = 100 * np.array([np.mean(run.by_budget) for run in runs])
    gain = generous - 100 * np.array([run.generous for run in plain]) if plain else np.zeros(len(runs))
    return {
        "model": net.model,
        "weights": rule,
        "KB a round": 2 * runs[0].size_bytes / 1e3,
        "accuracy %": float(generous.mean()),
        "seeds": " ".join(f"{value:.1f}" for value in generous),
        "own budget %": float(own.mean()),
        "2 steps %": float(100 * np.mean([run.by_budget[0] for run in runs])),
        "gain, points": float(gain.mean()),
        "+-": float(gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 else 0.0,
        "devices that count": float(np.mean([run.counting for run in runs])),
        "MB at 2 steps": grown[0],
        "MB at 32": grown[1],
    }


@click.command(help=__doc__)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--rounds", type=int, help="Default: as in docs/benchmarks.md.")
@click.option("--alpha", type=float, default=0.5, show_default=True, help="Of Dirichlet: 100 is nearly IID.")
@data_option
@options
def main(data: Path, form: str, quick: bool, seeds: int, rounds: int | None, alpha: float) -> None:
    splits = read_splits(data)
    cell = CELLS[splits.train.features.shape[1:]]
    examples, tests, explicit = (200, 200, cell.explicit[-1:]) if quick else (cell.examples, 2000, cell.explicit)
    seeds, rounds = (1, 1) if quick else (seeds, rounds or cell.rounds)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for net in (cell.equilibrium, *explicit):
            bundle = _export(net, cell, Path(folder) / f"{net.model}.bundle")
            benches = [Bench(bundle, splits, examples, tests, alpha, seed) for seed in range(seeds)]
            grown = (memory(bundle, benches[0].budget(2)), memory(bundle, benches[0].budget(32)))
            plain: list[Fused] = []
            for rule in RULES if net is cell.equilibrium else RULES[:1]:
                runs = [bench.run(net, rule, rounds) for bench in benches]
                plain = plain or runs
                rows.append(row(net, rule, runs, plain, grown))
    solved, other = rows[: len(RULES)], rows[len(RULES)]
    best = max(solved, key=lambda r: r["accuracy %"])
    bytes_part = best["KB a round"] / other["KB a round"]
    gain = max(r["gain, points"] for r in solved[1:])
    targets = [
        Target(f"bytes a round, of those of the {other['model']}", bytes_part, 0.25),
        Target(f"points of accuracy less than the {other['model']}", other["accuracy %"] - best["accuracy %"], 1.0),
        Target("points that the best rule of quality gains over examples", gain, 1.0, at_least=True),
        Target("memory of training at 32 steps, of that at 2", best["MB at 32"] / best["MB at 2 steps"], 1.1),
    ]
    fleet = f"{DEVICES} devices, Dirichlet({alpha:g}), {rounds} rounds, {seeds} seeds"
    title = f"DEQ-FL on {examples} examples of {data.name}, {fleet}"
    finish(title, rows, targets, form)


def _export(net: Net, cell: Cell, out: Path) -> Bundle:
    from deq_stack import stack  # torch takes seconds to import; --help need not wait

    from edgefl_exporter import export
    from edgefl_exporter.zoo import ZOO

    module, example = stack(cell.equilibrium.model, net.layers) if net.layers else ZOO[net.model].make()
    programs = ("train", "gradient", "evaluate")
    return export(module, example, out=out, name=net.model, clip_norm=CLIP_NORM, programs=programs)


if __name__ == "__main__":
    main()
