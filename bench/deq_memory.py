"""Memory and time of a training step of an equilibrium model, by the budget K of its solve.

    python bench/deq_memory.py

Batch 32, tolerance 0, so that every example takes all K steps. "MB" of 10^6 bytes: by how much a process with one
thread grew, at its peak, from before it read the bundle to after five steps (the state is there twice). "torch, MB":
the same for PyTorch where autograd goes through all K steps, as in a network of K + 1 layers. "ms": processor
time, the best of some steps; "torch, ms": of the same step in PyTorch, eager, with the phantom gradient. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from harness import Row, Target, finish, options
from torch import nn

from edgefl.bundle import Bundle
from edgefl.shapes import example_inputs
from edgefl_device.engines.runtime import Runtime

MODELS = ("deq-mlp", "deq-conv", "deq-conv-cifar")
BUDGETS = (2, 4, 8, 16, 32)
BATCH = 32
WORKER = Path(__file__).with_name("doctor_memory_worker.py")
UNROLLED = Path(__file__).with_name("deq_memory_worker.py")


@click.command(help=__doc__)
@options
def main(form: str, quick: bool) -> None:
    from edgefl_exporter import export
    from edgefl_exporter.zoo import ZOO

    torch.set_num_threads(1)
    budgets = (BUDGETS[0], BUDGETS[-1]) if quick else BUDGETS
    rows: list[Row] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS[:1] if quick else MODELS:
            module, example = ZOO[name].make()
            out = Path(folder) / name
            bundle = export(module, example, out=out, name=name, programs=("train",))
            mine = [_row(name, bundle, out, module, most, quick) for most in budgets]
            grown = [row["MB"] for row in mine]
            targets.append(Target(f"memory of {name}, the largest K over the smallest", grown[-1] / grown[0], 1.1))
            rows += mine
    finish("A training step of an equilibrium model", rows, targets, form)


def _row(name: str, bundle: Bundle, path: Path, module: nn.Module, most: int, quick: bool) -> Row:
    settings = {"max_steps": float(most), "tolerance": 0.0}
    ours = [str(WORKER), str(path), str(BATCH), *(f"{key}={value}" for key, value in settings.items())]
    theirs = [str(UNROLLED), name, str(BATCH), str(most)]
    inputs = example_inputs(bundle.manifest.program("train"), BATCH)
    inputs |= {key: np.array(value, np.float32) for key, value in settings.items()}
    runtime = Runtime(bundle)
    tries = 2 if quick else 50
    return {
        "model": name,
        "K": most,
        "MB": _grown(ours),
        "torch, MB": _grown(theirs),
        "ms": _best_ms(lambda: runtime.step("train", inputs), tries),
        "torch, ms": _best_ms(_eager(module, inputs, settings), tries),
    }


def _grown(arguments: list[str]) -> float:
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout) / 1e6


def _best_ms(step: Callable[[], object], tries: int) -> float:
    step()
    seconds = []
    for _ in range(tries):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return min(seconds) * 1e3


def _eager(module: Any, inputs: dict[str, Any], settings: dict[str, float]) -> Callable[[], None]:
    for key, value in settings.items():
        module.get_buffer(key).fill_(value)
    x, y = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["y"])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x).output, y).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
