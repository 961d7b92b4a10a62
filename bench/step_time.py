"""Milliseconds per training step: our program in onnxruntime against PyTorch eager, same threads, interleaved.

Our program is driven as a device drives it: IOBinding, state in OrtValues, two sets of buffers that change places.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from harness import Row, Target, finish, options
from torch import nn

from edgefl.bundle import Bundle
from edgefl_exporter import SGD, export
from edgefl_exporter.zoo import ZOO

MOST = 1.4  # times torch eager


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def batch_norm_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 10),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 784-128-64-10": (mlp, (32,)),
    "MNIST CNN 1.66 M": (lambda: ZOO["mnist-cnn"].make()[0], (10, 50)),
    "BatchNorm CNN": (batch_norm_cnn, (32,)),
}


@click.command()
@options
def main(form: str, quick: bool) -> None:
    """Time one training step of three models, at 1 and 2 threads.

    Example: python bench/step_time.py --format json
    """
    rows: list[Row] = []
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, batches) in MODELS.items():
            torch.manual_seed(0)
            model = make()
            bundle = export(
                model,
                torch.zeros(1, 1, 28, 28),
                out=Path(folder) / "m.bundle",
                name="m",
                optimizer=SGD(learning_rate=0.01),
                programs=("train",),
            )
            for batch in batches:
                for threads in (1, 2):
                    times = _measure(bundle, model, batch, threads, seconds=0.3 if quick else 4.0)
                    ours, eager = (statistics.median(found) * 1e3 for found in times)
                    best = [min(found) * 1e3 for found in times]
                    ratios = ours / eager, best[0] / best[1]
                    rows.append(
                        {
                            "model": name,
                            "batch": batch,
                            "threads": threads,
                            "ours_ms": ours,
                            "torch_ms": eager,
                            "ratio": ratios[0],
                            "best_ratio": ratios[1],
                        }
                    )
                    # A busy machine hurts torch's threads more than ours; the worse of both ratios is the honest one.
                    targets.append(Target(f"{name}, batch {batch}, threads {threads}: ours/torch", max(ratios), MOST))
    finish("step_time", rows, targets, form)


def _measure(
    bundle: Bundle, model: nn.Module, batch: int, threads: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Seconds of each of our steps and of torch's. They take turns, a few steps each, so that noise hits both."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch, 1, 28, 28), dtype=np.float32)
    y = generator.integers(0, 10, batch)
    torch.set_num_threads(threads)
    ours, eager = _our_step(bundle, x, y, threads), _torch_step(model, x, y)
    times: tuple[list[float], list[float]] = ([], [])
    for step in (ours, eager):
        for _ in range(3):
            step()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for step, found in zip((ours, eager), times, strict=True):
            for repeat in range(5):
                start = time.perf_counter()
                step()
                if repeat:  # the first after a change of turns finds cold caches
                    found.append(time.perf_counter() - start)
    return times


def _our_step(bundle: Bundle, x: np.ndarray, y: np.ndarray, threads: int) -> Callable[[], None]:
    program = bundle.manifest.program("train")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    # Threads that spin between runs would take the cores from torch's turn.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads == 1 else "0")
    session = onnxruntime.InferenceSession(bundle.bytes_of(program.file), settings, providers=["CPUExecutionProvider"])
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    weights = bundle.weights()
    now = {name: value(weights[name].copy()) for name in program.reads}
    spare = {name: value(weights[name].copy()) for name in program.writes}
    inputs = {"x": value(x), "y": value(y), "learning_rate": value(np.array(0.01, np.float32))}
    scalars = {output.name: value(np.zeros((), np.float32)) for output in program.outputs}

    def bind(read: dict[str, onnxruntime.OrtValue], write: dict[str, onnxruntime.OrtValue]) -> onnxruntime.IOBinding:
        binding = session.io_binding()
        for name, tensor in (read | inputs).items():
            binding.bind_ortvalue_input(name, tensor)
        for name, output in program.writes.items():
            binding.bind_ortvalue_output(output, write[name])
        for name, tensor in scalars.items():
            binding.bind_ortvalue_output(name, tensor)
        return binding

    turns = [bind(now, spare), bind(now | spare, {name: now[name] for name in program.writes})]

    def step() -> None:
        session.run_with_iobinding(turns[0])
        turns.reverse()

    return step


def _torch_step(model: nn.Module, x: np.ndarray, y: np.ndarray) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    features, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(features), labels).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
