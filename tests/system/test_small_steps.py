"""A run whose rounds are mostly not durable, in real processes: its aggregator is killed in the middle of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dreaming
import numpy as np
from processes import DEVICES, Process
from toy import write_regression

import edgefl_broker
from edgefl.aggregator.store import Store

Start = Callable[..., Process]


def aggregate(run: Path, bundle: Path, broker: str, *, kill_in: int | None = None) -> None:
    """Carry the run on; `kill_in`: until a reply of this round has come, then kill -9."""
    command = [sys.executable, dreaming.__file__, str(run), str(bundle), broker]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if kill_in is not None and line.startswith(f"round {kill_in + 1}: 1 of 3 replies"):
                process.kill()
                break
        else:
            assert kill_in is None and process.wait(60) == 0, "".join(lines)


def carry_out(folder: Path, start: Start, kills: list[int]) -> dict[str, bytes]:
    """The examples and every device's weights at the end of a run whose aggregator is killed so often."""
    bundle = write_regression(folder / "toy.bundle")
    rng = np.random.default_rng(5)
    with edgefl_broker.start() as broker:
        devices = []
        for name in DEVICES:
            data = folder / f"{name}.npz"
            x, y = rng.integers(-1, 2, (2, 2)).astype(np.float32), rng.integers(-2, 3, 2).astype(np.float32)
            np.savez(data, x=x, y=y)
            state = str(folder / name)
            options = [
                "--broker",
                broker.url,
                "--name",
                name,
                "--data",
                str(data),
                "--state",
                state,
                "--run",
                "dreaming",
            ]
            devices.append(start("device", *options))
        for round in kills:
            aggregate(folder / "run", bundle.path, broker.url, kill_in=round)
        aggregate(folder / "run", bundle.path, broker.url)
        assert [device.end()[0] for device in devices] == [0, 0, 0]
    store = Store.open(folder / "run")
    state = store.load_state()
    assert state is not None and state.round == 12
    assert [record.round for record in store.records()] == list(range(1, 13))
    assert store.epoch == len(kills) + 2
    store.close()
    models = {name: (folder / name / "dreaming.safetensors").read_bytes() for name in DEVICES}
    return {"x": state.tensors["x"].tobytes()} | models


def test_killed_in_the_middle_of_small_steps_a_run_comes_to_the_same_end(tmp_path: Path, start: Start) -> None:
    unbroken = carry_out(tmp_path / "unbroken", start, [])
    assert len(set(unbroken.values())) == 4
    assert carry_out(tmp_path / "broken", start, [3, 9]) == unbroken
