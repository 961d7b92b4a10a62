"""Memory of a device that trains FedAvg's MNIST CNN on 600 images, ten at a time, beside torch doing the same.

    python bench/device_memory.py --data mnist/

Each row is a process of its own: resident memory in MB of 10^6 bytes after each stage, the most it ever was (peak)
and what it is after the last batch (steady). "runtime" only trains; "edgefl device" is the whole command in three
rounds over MQTT, with connection, journal and reply; "waiting" is the command that is connected and has no run yet, and
its seconds are the processor time it took from its start to there. Linux only: the figures come from /proc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from harness import Row, Target, data_option, finish, options

import edgefl_broker
from edgefl import bundle as bundles
from edgefl.address import Address
from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.serve import Server, Watcher
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.store import Store
from edgefl.methods.fedavg import FedAvg
from edgefl.runs.fleet import Fleet
from edgefl_device.sources import read

LIMIT_MB = 120.0
WAITING_MB, CONNECTED_S = 60.0, 0.6
EXAMPLES = 600
WORKER = Path(__file__).with_name("device_memory_worker.py")


def measure(engine: str, model: str, bundle: Path, data: Path, epochs: int) -> Row:
    """One process, from its start to its last batch."""
    command = [sys.executable, str(WORKER), engine, model, str(bundle), str(data), str(epochs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(done.stdout)
    return row


def measure_command(bundle: Path, data: Path, folder: Path) -> Row:
    """`edgefl device` itself, read from /proc whenever a round is done."""
    read_bundle = bundles.read(bundle)
    seen: list[dict[str, float]] = []
    store = Store.create(folder / "memory", "")
    with edgefl_broker.start() as broker:
        server = Server(
            "memory",
            [DeviceClass("all", read_bundle)],
            FedAvg(read_bundle.weights(), rounds=3, batch_size=10),
            store,
            Address.parse(broker.url),
            settings=RoundSettings(),
            seed=0,
            watcher=Watcher(round_done=lambda record, state: seen.append(resident(fleet.pids["device"]))),
        )
        with Fleet(broker.url, "memory", {"device": data}, folder / "devices") as fleet:
            server.serve(fleet.check)
            fleet.wait(5.0)
    records = store.records()
    store.close()
    row: Row = {"engine": "edgefl device", "after python": None, "after imports": None, "after model": None}
    return row | {
        "peak": seen[-1]["VmHWM"],
        "steady": seen[-1]["VmRSS"],
        "loss": records[-1].metrics["train.loss"],
        "seconds": records[-1].elapsed_s,
    }


def measure_waiting(data: Path, folder: Path) -> Row:
    """`edgefl device` beside a broker on which there is no run."""
    row: Row = {"engine": "waiting", "after python": None, "after imports": None, "after model": None}
    with edgefl_broker.start() as broker:
        command = [sys.executable, "-m", "edgefl", "device", "--name", "pi-1", "--state", str(folder / "waiting")]
        command += ["--broker", broker.url, "--data", str(data)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            next(line for line in process.stderr if "connected to" in line)
            memory, seconds = resident(process.pid), processor_s(process.pid)
            process.kill()
    return row | {"peak": memory["VmHWM"], "steady": memory["VmRSS"], "loss": None, "seconds": seconds}


def processor_s(pid: int) -> float:
    """The processor time that a process has had: fields 14 and 15 of its stat, in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> dict[str, float]:
    """VmRSS and VmHWM of a process, in MB of 10^6 bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")}


@click.command(help=__doc__)
@click.option("--epochs", type=int, default=2, show_default=True)
@data_option
@options
def main(data: Path, form: str, quick: bool, epochs: int) -> None:
    from edgefl_exporter import export
    from edgefl_exporter.zoo import ZOO

    train = read(data)
    name, examples, epochs = ("lenet5", 50, 1) if quick else ("mnist-cnn", EXAMPLES, epochs)
    with tempfile.TemporaryDirectory() as folder:
        bundle, images = Path(folder) / "model.bundle", Path(folder) / "images.npz"
        model, example = ZOO[name].make()
        export(model, example, out=bundle, name=name, programs=("train", "evaluate"))
        np.savez(images, x=train.features[:examples], y=train.labels[:examples])
        rows = [measure(engine, name, bundle, images, epochs) for engine in ("device", "torch")]
        rows[0]["engine"] = "runtime"
        rows.append(measure_command(bundle, images, Path(folder)))
        rows.append(measure_waiting(images, Path(folder)))
    title = f"Resident memory in MB, {name}, {examples} images"
    targets = [Target(f"peak of {row['engine']} in MB", row["peak"], LIMIT_MB) for row in (rows[0], rows[2])]
    targets.append(Target("peak of a device that waits in MB", rows[3]["peak"], WAITING_MB))
    targets.append(Target("processor time to be connected in s", rows[3]["seconds"], CONNECTED_S))
    finish(title, rows, targets, form)


if __name__ == "__main__":
    main()
