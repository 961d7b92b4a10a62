"""Memory of a device that trains FedAvg's MNIST CNN on 600 images, ten at a time, beside torch doing the same.

    python bench/device_memory.py --data mnist/

Each row is a process of its own: resident memory in MB of 10^6 bytes after each stage, the most it ever was (peak)
and what it is after the last batch (steady). Linux only: the figures come from /proc.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from harness import Row, Target, data_option, finish, options

from edgefl_device.data import read

LIMIT_MB = 120.0
EXAMPLES = 600
WORKER = Path(__file__).with_name("device_memory_worker.py")


def measure(engine: str, bundle: Path, data: Path, epochs: int) -> Row:
    """One process, from its start to its last batch."""
    command = [sys.executable, str(WORKER), engine, str(bundle), str(data), str(epochs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(done.stdout)
    return row


@click.command(help=__doc__)
@click.option("--epochs", type=int, default=2, show_default=True)
@data_option
@options
def main(data: Path, form: str, quick: bool, epochs: int) -> None:
    from edgefl_exporter.export import export
    from edgefl_exporter.zoo import ZOO

    train = read(data)
    examples = 50 if quick else EXAMPLES
    with tempfile.TemporaryDirectory() as folder:
        bundle, images = Path(folder) / "cnn.bundle", Path(folder) / "images.npz"
        model, example = ZOO["mnist-cnn"]()
        export(model, example, out=bundle, name="mnist-cnn", programs=("train", "evaluate"))
        np.savez(images, x=train.features[:examples], y=train.labels[:examples])
        rows = [measure(engine, bundle, images, epochs) for engine in ("device", "torch")]
    title = f"Resident memory in MB, MNIST CNN, {examples} images"
    finish(title, rows, [Target("peak of the device in MB", rows[0]["peak"], LIMIT_MB)], form)


if __name__ == "__main__":
    main()
