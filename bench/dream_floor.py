"""Milliseconds of one dream step besides its gradient: what announcing dreams and fusing gradients costs.

    python bench/dream_floor.py

Four device processes over each broker; 64 dreams of 3x32x32 go down, a gradient of the same shape comes up from each
device, nothing is durable. The program multiplies the dreams by a number, so that its time is next to nothing; what it
takes alone is taken off.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import numpy as np
import onnx
from harness import Row, Target, finish, options
from onnx import TensorProto, helper
from round_floor import NO_FILE, has_mosquitto

import edgefl_broker
from edgefl import bundle as bundles
from edgefl.address import Address
from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.serve import Server
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.store import Store
from edgefl.bundle import Bundle
from edgefl.data_contract import DataContract, Feature
from edgefl.manifest import FORMAT, Input, Manifest, Output, Parity, Program
from edgefl.method import Ask, Fused, State, Task
from edgefl.runs.fleet import Fleet
from edgefl_device.engines.runtime import Runtime

DEVICES = 4
SHAPE = (64, 3, 32, 32)
RATE = 0.05
FIRST = 5  # rounds that are left out: they move the bundle and load the program
BOUND_MS = 20.0

Encoding = Literal["float32", "float16"]


@dataclass(frozen=True)
class Steps:
    """Dreams that go a plain step against the mean gradient in each round; on their way down as `down`, uint8 pixels of
    -1 ... 1 or float32."""

    steps: int
    down: str
    up: Encoding

    def start(self) -> State:
        x = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
        return State(0, {"x": x})

    def ask(self, state: State) -> Ask | None:
        if state.round == self.steps:
            return None
        x = state.tensors["x"]
        if self.down == "uint8":
            x = np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)
        task = Task("dream", feed="announced", batch_size=0, send=("dream_gradient",), encoding=self.up)
        return Ask((task,), {"x": x}, weight="equal", durable=False)

    def advance(self, state: State, fused: Fused) -> State:
        step = np.float32(RATE) * fused.tensors["dream_gradient"]
        return State(state.round + 1, {"x": state.tensors["x"] - step})


@click.command()
@click.option("--rounds", type=click.IntRange(10), default=200, show_default=True)
@options
def main(rounds: int, quick: bool, form: str) -> None:
    """Milliseconds per dream step without its gradient, 4 devices, 64 dreams of 3x32x32, over each broker."""
    brokers = [b for b in ("mosquitto", "iotcore") if b == "iotcore" or has_mosquitto()]
    kinds: list[tuple[str, Encoding]] = [("uint8", "float16"), ("float32", "float32")]
    if quick:
        kinds, rounds = kinds[:1], 10
    rows = [measure(b, down, up, rounds) for b in brokers for down, up in kinds]
    targets = [
        Target(f"ms per step besides the program, uint8 down, float16 up, {row['broker']}", row["besides ms"], BOUND_MS)
        for row in rows
        if row["up"] == "float16"
    ]
    finish("dream_floor", rows, targets, form)


def measure(engine: str, down: str, up: Encoding, rounds: int) -> Row:
    """One row: the median of `rounds` steps over one broker."""
    with tempfile.TemporaryDirectory() as folder, edgefl_broker.start(engine) as broker:
        place = Path(folder)
        bundle = scaling_bundle(place / "bundle")
        np.savez(place / "data.npz", x=np.zeros((1, *SHAPE[1:]), np.float32), y=np.zeros(1, np.int64))
        store = Store.create(place / "floor", "")
        server = Server(
            "floor",
            [DeviceClass("all", bundle)],
            Steps(rounds + FIRST, down, up),
            store,
            Address.parse(broker.url),
            settings=RoundSettings(min_devices=DEVICES, quorum=1.0, deadline_s=120.0),
            seed=0,
        )
        data = {f"device-{i}": place / "data.npz" for i in range(DEVICES)}
        with Fleet(broker.url, "floor", data, place / "devices") as fleet:
            server.serve(fleet.check)
            fleet.wait(5.0)
        records = store.records()[FIRST:]
        store.close()
        program_ms = program_time(bundle)
    ms = [1000 * (b.elapsed_s - a.elapsed_s) for a, b in itertools.pairwise(records)]
    median = statistics.median(ms)
    return {
        "broker": engine,
        "down": down,
        "up": up,
        "median ms": round(median, 1),
        "program ms": round(program_ms, 2),
        "besides ms": round(median - program_ms, 1),
        "p10 ms": round(float(np.percentile(ms, 10)), 1),
        "p90 ms": round(float(np.percentile(ms, 90)), 1),
        "KiB down": round(statistics.median(r.bytes_down for r in records) / DEVICES / 1024),
        "KiB up": round(statistics.median(r.bytes_up for r in records) / DEVICES / 1024),
    }


def program_time(bundle: Bundle) -> float:
    """Median milliseconds of the program alone."""
    runtime, times = Runtime(bundle), []
    x = np.zeros(SHAPE, np.float32)
    for _ in range(20):
        start_s = time.perf_counter()
        runtime.step("dream", {"x": x})
        times.append(1000 * (time.perf_counter() - start_s))
    return statistics.median(times)


def scaling_bundle(out: Path) -> Bundle:
    """A bundle whose `dream` gives the gradient of |x|^2 / 200."""
    shape = ["batch", *SHAPE[1:]]
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["x", "rate"], ["dream_gradient"]),
        helper.make_node("ReduceMean", ["dream_gradient"], ["loss"], keepdims=0),
    ]
    rate = helper.make_tensor("rate", TensorProto.FLOAT, [], [0.01])
    outputs = [value("dream_gradient", TensorProto.FLOAT, shape), value("loss", TensorProto.FLOAT, [])]
    graph = helper.make_graph(nodes, "dream", [value("x", TensorProto.FLOAT, shape)], outputs, [rate])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    program = Program(
        file=NO_FILE,
        inputs=(Input("x", "float32", tuple(shape), "features"),),
        outputs=(
            Output("dream_gradient", "float32", tuple(shape), "concat"),
            Output("loss", "float32", (), "mean"),
        ),
        reads=(),
        writes={},
        parity=Parity("none: a product", 0.0, {}),
        golden=NO_FILE,
    )
    manifest = Manifest(
        format=FORMAT,
        name="floor",
        method="codream",
        made_by="bench/dream_floor.py",
        data=DataContract((Feature(SHAPE[1:], "float32"),), classes=1),
        state=(),
        programs={"dream": program},
        weights=NO_FILE,
    )
    return bundles.write(out, manifest, weights={}, programs={"dream": model.SerializeToString()}, golden={"dream": {}})


if __name__ == "__main__":
    main()
