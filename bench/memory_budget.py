"""What a training step's memory costs in time: programs to a budget, beside PyTorch's own checkpointing.

Growth is the most resident memory in ten steps of 32 examples less what the process had with everything loaded, in MB
of 10^6 bytes. Rows are our plain program, the fastest that needs at most half of that, the least, PyTorch eager,
and PyTorch with each block of the model checkpointed. Each is a process of its own with one thread; for time they take
turns, and a ratio is the median over turns of the fastest steps. Linux only.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import click
from harness import Row, Target, finish, options
from step_footprint import peak
from step_models import MODELS
from step_time import QUICK, measure, prepare, started

from edgefl.bundle import Bundle, read
from edgefl.errors import InputError
from edgefl.shapes import read_graph
from edgefl_exporter.memory import growth
from edgefl_exporter.memory.curve import curve
from edgefl_exporter.memory.fit import fit
from edgefl_exporter.memory.training import take_apart
from edgefl_exporter.memory.write import write

BENCHED = ("ResNet-20", "MobileNetV2-style", "small ViT")
BATCH, STEPS, SHARE = 32, 10, 0.5
ENGINES = {"plain": "portable", "half": "tight", "least": "tight", "torch": "torch", "checkpointed": "checkpointed"}


@click.command(help=__doc__)
@click.option("--only", default="", metavar="WORDS", help="Models whose name contains WORDS.")
@click.option("--seconds", type=float, default=30.0, show_default=True, help="Of each model's turns.")
@options
def main(form: str, quick: bool, only: str, seconds: float) -> None:
    rows: list[Row] = []
    targets: list[Target] = []
    for name in (QUICK,) if quick else BENCHED:
        if only.lower() not in name.lower():
            continue
        with tempfile.TemporaryDirectory() as place:
            found = _rows(name, Path(place), 0.1 if quick else seconds)
        rows += found
        (best,) = [row for row in found if row["program"] == "half"] or [found[-1]]
        targets.append(Target(f"{name}: growth / plain", best["growth / plain"], SHARE))
        targets.append(Target(f"{name}: time / plain", best["time / plain"], 1.3))
    finish("memory_budget", rows, targets, form)


def _rows(name: str, place: Path, seconds: float) -> list[Row]:
    folder = place / "plain"
    folder.mkdir()
    prepare(MODELS[name], BATCH, folder, {})
    bundle = read(folder / "m.bundle")
    made = {"plain": bundle.program_bytes("train"), **_to_budgets(bundle)}
    for program, data in made.items():
        if program != "plain":
            (place / program).mkdir()
            for file in ("x.npy", "y.npy", "writes.json", "weights.npz"):
                shutil.copy(folder / file, place / program)
            (place / program / "train.onnx").write_bytes(data)
    wanted = {kind: engine for kind, engine in ENGINES.items() if kind in made or not engine.startswith(("port", "ti"))}
    with ExitStack() as stack:
        engines = {}
        for kind, engine in wanted.items():
            where = place / kind if kind in made else folder
            engines[kind] = stack.enter_context(started(sys.executable, engine, where, name, 1))
            assert not engines[kind].why, engines[kind].why
        grown = {}
        for kind, process in engines.items():
            process.seconds(STEPS)
            assert process.loaded_mb is not None
            grown[kind] = peak(Path(f"/proc/{process.pid}/status").read_text()) - process.loaded_mb
        times = measure(engines, seconds)
    return [
        {
            "model": name,
            "program": kind,
            "growth, MB": grown[kind],
            "growth / plain": grown[kind] / grown["plain"],
            "ms": times[kind].median,
            "time / plain": times[kind].over(times["plain"])[0],
        }
        for kind in engines
    ]


def _to_budgets(bundle: Bundle) -> dict[str, bytes]:
    """The fastest program that needs half of the plain one's memory, where there is one, and the least."""
    program, data, weights = bundle.manifest.program("train"), bundle.program_bytes("train"), bundle.weights()
    plain = growth.measure(program, data, weights, BATCH)
    points = curve(take_apart(read_graph(program, data, weights), program, BATCH))
    found = {}
    with suppress(InputError):  # nothing fits
        found["half"], _ = fit(program, data, weights, int(SHARE * plain.grown_bytes), BATCH)
    return {**found, "least": write(data, points[-1].program)}


if __name__ == "__main__":
    main()
