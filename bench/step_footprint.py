"""What training ResNet-20 at 32x32, batch 32, costs beside time: memory, file size, cold start, export.

Each engine is a process of its own with one thread. Memory in MB of 10^6 bytes: after its imports, with the model
loaded and ready to train, the most it ever was in the first steps, and in all of them. What a step needs counts from
the loaded model: imports differ by what else a module brings. Cold start: from starting Python to the end of the first
step. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from harness import Row, Target, finish, options
from step_models import MODELS
from step_time import QUICK, prepare, started

IMPORTS = {"portable": "onnxruntime", "torch": "torch"}
BATCH = 32
FEW, MANY = 10, 1000  # steps


@click.command(help=__doc__)
@options
def main(form: str, quick: bool) -> None:
    name = QUICK if quick else "ResNet-20"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        start = time.perf_counter()
        prepare(MODELS[name], BATCH, folder, {})
        export_s = time.perf_counter() - start
        program_kb = (folder / "train.onnx").stat().st_size / 1e3
        many = {"portable": 2 * FEW if quick else MANY, "torch": 2 * FEW}
        rows = [_row(engine, name, folder, many[engine]) for engine in IMPORTS]
    ours, torch = rows
    grown = [row["peak, first steps"] - row["loaded"] for row in rows]
    targets = [
        Target("peak of the process, portable/torch", ours["peak"] / torch["peak"], 0.5),
        Target("growth of the first steps, portable/torch", grown[0] / grown[1], 0.5),
        Target(f"growth from step {FEW} to step {many['portable']}, MB", ours["peak"] - ours["peak, first steps"], 2.0),
        Target("program, KB", program_kb, 300.0),
        Target("cold start, s", ours["cold start, s"], 2.0),
        Target("export with its proof, s", export_s, 60.0),
    ]
    finish("step_footprint", rows, targets, form)


def _row(engine: str, model: str, folder: Path, steps: int) -> Row:
    code = f"import numpy, {IMPORTS[engine]}; print(open('/proc/self/status').read())"
    imports = peak(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    start = time.perf_counter()
    with started(sys.executable, engine, folder, model, 1) as process:
        cold = process.ready - start
        assert not process.why, process.why
        status = Path(f"/proc/{process.pid}/status")
        process.seconds(FEW)
        first = peak(status.read_text())
        process.seconds(steps)
        return {
            "engine": engine,
            "imports": imports,
            "loaded": process.loaded_mb,
            "peak, first steps": first,
            "peak": peak(status.read_text()),
            "cold start, s": cold,
        }


def peak(status: str) -> float:
    """The largest resident memory, from a process's status, in MB."""
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
