"""Milliseconds per training step: our programs in onnxruntime, PyTorch eager, and two other runtimes for devices.

Every engine is a process of its own. They take turns, a few steps each, so that the noise of a shared machine meets
all of them: compare within a row.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from harness import Row, Target, finish, options
from step_models import MODELS, Benched, WithLoss

from edgefl_exporter import SGD, export

MOST = 1.0  # times torch eager, and times each other runtime
WORKER = Path(__file__).with_name("step_time_worker.py")
STEPS = 5  # in a turn; the first, which finds another engine's data in the caches, is not counted
QUICK = "MLP 784-128-64-10"
OTHERS = ("onnxruntime-training", "executorch")


class Engine:
    """A worker process; `why` says why it cannot run the model, "" when it can."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self.pid = process, process.pid
        first = self._answer()  # it has taken its first step, or cannot
        self.why: str = first.get("why", "")
        self.loaded_mb: float | None = first.get("resident_mb")
        self.ready = time.perf_counter()
        self.why = self.why or self._ask(STEPS).get("why", "")

    def seconds(self, steps: int) -> list[float]:
        answer = self._ask(steps)
        assert "seconds" in answer, answer
        return answer["seconds"]  # type: ignore[no-any-return]

    def _ask(self, steps: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; the answer says so
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return {"why": f"its process ended with {self._process.wait()}"}
        return json.loads(line)  # type: ignore[no-any-return]


@contextmanager
def started(python: str, engine: str, folder: Path, model: str, threads: int) -> Iterator[Engine]:
    command = [python, str(WORKER), engine, str(folder), model, str(threads)]
    quiet = subprocess.DEVNULL if engine in OTHERS else None  # they log what they optimise
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True) as process:
        try:
            yield Engine(process)
        finally:
            process.kill()


@dataclass(frozen=True)
class Times:
    """Milliseconds of each counted step, turn by turn."""

    turns: list[list[float]]

    @property
    def all(self) -> list[float]:
        return [step for turn in self.turns for step in turn]

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    @property
    def spread(self) -> float:
        """The interquartile range."""
        low, _, high = statistics.quantiles(self.all, n=4)
        return high - low

    def over(self, other: Times) -> tuple[float, float]:
        """The median, over turns, of our fastest step to the other's; and the ratio of the fastest of all."""
        pairs = zip(self.turns, other.turns, strict=True)
        return statistics.median(min(a) / min(b) for a, b in pairs), min(self.all) / min(other.all)


def measure(engines: Mapping[str, Engine], seconds: float) -> dict[str, Times]:
    turns: dict[str, list[list[float]]] = {name: [] for name in engines}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(turns["torch"]) < 2:
        for name, engine in engines.items():
            turns[name].append([1e3 * step for step in engine.seconds(STEPS)[1:]])
    return {name: Times(found) for name, found in turns.items()}


def prepare(benched: Benched, batch: int, folder: Path, others: Mapping[str, str]) -> None:
    """Write the data, and the files that each engine starts from."""
    x, y = benched.data(batch)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    model, example = benched.make()
    bundle = export(
        model,
        example,
        out=folder / "m.bundle",
        name="m",
        loss=benched.loss,
        optimizer=SGD(learning_rate=0.01),
        programs=("train",),
    )
    program = bundle.manifest.program("train")
    (folder / "train.onnx").write_bytes(bundle.program_bytes("train"))
    (folder / "writes.json").write_text(json.dumps(dict(program.writes)))
    np.savez(folder / "weights.npz", **{n: w for n, w in bundle.weights().items() if n in program.reads})
    given = (torch.from_numpy(x), torch.from_numpy(y))
    if "executorch" in others:
        torch.export.save(torch.export.export(WithLoss(model), given, strict=False), folder / "step.pt2")
    if "onnxruntime-training" in others:
        flat = model if benched.loss == "cross_entropy" else torch.nn.Sequential(model, torch.nn.Flatten(0, 1))
        names = {"parameters": dict(flat.named_parameters()), "buffers": dict(flat.named_buffers())}
        (folder / "names.json").write_text(json.dumps({kind: list(found) for kind, found in names.items()}))
        torch.onnx.export(
            flat,
            given[:1],
            folder / "forward.onnx",
            dynamo=False,
            opset_version=15,
            input_names=["x"],
            training=torch.onnx.TrainingMode.EVAL,  # its gradient builder turns batch statistics on by itself
            do_constant_folding=False,
        )


@click.command(help=__doc__)
@click.option("--only", default="", metavar="WORDS", help="Models whose name contains WORDS.")
@click.option("--seconds", type=float, default=6.0, show_default=True, help="Of each row.")
@click.option("--onnxruntime-training", "ort", metavar="PYTHON", help="Of an environment with it, onnx and torch.")
@click.option("--executorch", "et", metavar="PYTHON", help="Of an environment with it and torch.")
@options
def main(form: str, quick: bool, only: str, seconds: float, ort: str | None, et: str | None) -> None:
    others = {name: python for name, python in zip(OTHERS, (ort, et), strict=True) if python}
    pythons = {"portable": sys.executable, "torch": sys.executable, **others}
    rows: list[Row] = []
    targets: list[Target] = []
    for name, benched in MODELS.items():
        if only.lower() not in name.lower() or (quick and name != QUICK):
            continue
        for batch in benched.batches:
            with tempfile.TemporaryDirectory() as folder:
                prepare(benched, batch, Path(folder), others)
                for threads in (1,) if quick else (1, 2):
                    row, judged = _row(name, batch, threads, Path(folder), pythons, 0.5 if quick else seconds)
                    rows.append(row)
                    targets += judged
    finish("step_time", rows, targets, form)


def _row(
    name: str, batch: int, threads: int, folder: Path, pythons: Mapping[str, str], seconds: float
) -> tuple[Row, list[Target]]:
    with ExitStack() as stack:
        found = {e: stack.enter_context(started(p, e, folder, name, threads)) for e, p in pythons.items()}
        for engine in ("portable", "torch"):
            assert not found[engine].why, f"{name}, {engine}: {found[engine].why}"
        able = {engine: process for engine, process in found.items() if not process.why}
        times = measure(able, seconds)
        reasons = [f"{engine}: {process.why}" for engine, process in found.items() if process.why]
    row: Row = {"model": name, "batch": batch, "threads": threads}
    for engine in ("portable", "torch", *OTHERS):
        row[f"{engine}, ms"] = round(times[engine].median, 3) if engine in times else None
        row[f"{engine}, spread"] = round(times[engine].spread, 3) if engine in times else None
    targets = []
    for engine in ("torch", *OTHERS):
        ratios = times["portable"].over(times[engine]) if engine in times else None
        row[f"/ {engine}"] = round(ratios[0], 3) if ratios else None
        row[f"/ {engine}, fastest"] = round(ratios[1], 3) if ratios else None
        if ratios:
            # Noise adds to a time, never takes away: the fastest steps say most, the turns confirm.
            what = f"{name}, batch {batch}, threads {threads}: portable/{engine}"
            targets.append(Target(what, max(ratios), MOST))
    return row | {"cannot run": "; ".join(reasons)}, targets


if __name__ == "__main__":
    main()
