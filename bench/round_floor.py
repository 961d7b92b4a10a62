"""Seconds per round when devices train nothing: what announcing, fanning out, uploading, fusing and saving cost.

    python bench/round_floor.py

Four device processes over both embedded brokers; a round moves the whole weights down and up for each device.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
from harness import Row, Target, finish, options
from onnx import TensorProto, helper

import edgefl_broker
from edgefl import bundle as bundles
from edgefl.address import Address
from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.serve import Server
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.store import Store
from edgefl.bundle import Bundle
from edgefl.data_contract import DataContract, Feature
from edgefl.manifest import FORMAT, File, Input, Manifest, Output, Parity, Program, StateTensor
from edgefl.methods.fedavg import FedAvg
from edgefl.runs.fleet import Fleet

DEVICES = 4
SIZES = {"4 KB": 4 * 1000, "1 MiB": 2**20, "10 MiB": 10 * 2**20}
NO_FILE = File("", "", 0)


@click.command()
@click.option("--rounds", type=click.IntRange(3), default=20, show_default=True)
@options
def main(rounds: int, quick: bool, form: str) -> None:
    """Seconds per round without training, 4 devices, over each embedded broker."""
    engines = [e for e in ("mosquitto", "iotcore") if e == "iotcore" or has_mosquitto()]
    sizes = {"4 KB": SIZES["4 KB"]} if quick else SIZES
    rows: list[Row] = []
    for engine in engines:
        for name, size_bytes in sizes.items():
            rows.append(measure(engine, name, size_bytes, 3 if quick else rounds))
    bounds = {"4 KB": 0.1, "10 MiB": 1.0}
    targets = [
        Target(f"seconds per round, {row['weights']}, {row['broker']}", row["median s"], bounds[row["weights"]])
        for row in rows
        if row["weights"] in bounds
    ]
    targets += [
        Target(f"bytes up / raw float32, {row['weights']}, {row['broker']}", row["bytes up / raw"], 1.02)
        for row in rows
        if row["weights"] != "4 KB"
    ]
    finish("round_floor", rows, targets, form)


def measure(engine: str, name: str, size_bytes: int, rounds: int) -> Row:
    """One row: `rounds` rounds of one size over one broker; the first, which also moves the bundle, is left out."""
    with tempfile.TemporaryDirectory() as folder, edgefl_broker.start(engine) as broker:
        place = Path(folder)
        bundle = identity_bundle(place / "bundle", size_bytes // 4)
        np.savez(place / "data.npz", x=np.zeros((1, 1), np.float32), y=np.zeros(1, np.int64))
        store = Store.create(place / "floor", "")
        server = Server(
            "floor",
            [DeviceClass("all", bundle)],
            FedAvg(bundle.weights(), rounds=rounds + 1),
            store,
            Address.parse(broker.url),
            settings=RoundSettings(min_devices=DEVICES, deadline_s=120.0),
            seed=0,
        )
        data = {f"device-{i}": place / "data.npz" for i in range(DEVICES)}
        with Fleet(broker.url, "floor", data, place / "devices") as fleet:
            server.serve(fleet.check)
            fleet.wait(5.0)
        records = store.records()
        store.close()
    ends = [r.elapsed_s for r in records]
    seconds = [b - a for a, b in itertools.pairwise(ends)]
    up = statistics.median(r.bytes_up for r in records[1:])
    return {
        "broker": engine,
        "weights": name,
        "median s": round(statistics.median(seconds), 4),
        "min s": round(min(seconds), 4),
        "max s": round(max(seconds), 4),
        "bytes up / raw": round(up / (DEVICES * size_bytes), 4),
        "rounds": len(seconds),
    }


def identity_bundle(out: Path, values: int) -> Bundle:
    """A bundle whose `train` program hands its weights through."""
    nodes = [
        helper.make_node("Identity", ["w"], ["next.w"]),
        helper.make_node("ReduceMean", ["x"], ["loss"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "train",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("learning_rate", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [values]),
        ],
        [
            helper.make_tensor_value_info("loss", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("next.w", TensorProto.FLOAT, [values]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    program = Program(
        file=NO_FILE,
        inputs=(
            Input("x", "float32", ("batch", 1), "features"),
            Input("learning_rate", "float32", (), "setting", 0.1),
        ),
        outputs=(Output("loss", "float32", (), "mean"),),
        reads=("w",),
        writes={"w": "next.w"},
        parity=Parity("none: an identity", 0.0, {}),
        golden=NO_FILE,
    )
    manifest = Manifest(
        format=FORMAT,
        name="floor",
        method="fedavg",
        made_by="bench/round_floor.py",
        data=DataContract((Feature((1,), "float32"),), classes=1),
        state=(StateTensor("w", "float32", (values,), "parameter"),),
        programs={"train": program},
        weights=NO_FILE,
    )
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal(values, dtype=np.float32)}
    programs = {"train": model.SerializeToString()}
    return bundles.write(out, manifest, weights=weights, programs=programs, golden={"train": {}})


def has_mosquitto() -> bool:
    return shutil.which("mosquitto") is not None or Path("/usr/sbin/mosquitto").exists()


if __name__ == "__main__":
    main()
