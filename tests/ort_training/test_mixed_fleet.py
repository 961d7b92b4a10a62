"""Devices with both engines in one run: real processes, a real broker."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from processes import DEVICES, Process, json_of

import edgefl_broker
from edgefl.bundle import Bundle
from edgefl.runs.parts import write_parts
from edgefl.tensors import load_tensors
from edgefl.training_artifacts import ENGINE

ROUNDS = 4
RUN = """
name = "test"
bundle = "{bundle}"
[method]
name = "fedavg"
rounds = {rounds}
batch_size = 32
learning_rate = 0.02
[round]
min_devices = 3
quorum = 1.0
deadline_s = 60.0
"""


def test_a_mixed_fleet_ends_where_an_all_portable_one_does(
    hard_bundle: Bundle, training_python: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    write_parts("digits", parts, DEVICES, "iid", 1.0, 2, seed=0)
    portable = federate(tmp_path / "portable", hard_bundle, parts, {})
    mixed = federate(tmp_path / "mixed", hard_bundle, parts, {"pi-2": training_python, "pi-3": training_python})
    initial = hard_bundle.weights()
    for name in ("0.weight", "1.running_var", "11.weight"):
        assert np.abs(portable[name] - initial[name]).max() > 1e-2, name  # it has trained
    assert portable.keys() == mixed.keys()
    for name, want in portable.items():
        np.testing.assert_allclose(mixed[name], want, rtol=0, atol=1e-4, err_msg=name)


def federate(folder: Path, bundle: Bundle, parts: Path, training: dict[str, Path]) -> dict[str, np.ndarray]:
    """The weights that a run ends with; `training`: devices with the other engine, and the interpreter they need."""
    folder.mkdir()
    (folder / "run.toml").write_text(RUN.format(bundle=bundle.path, rounds=ROUNDS))
    with edgefl_broker.start() as broker:
        processes = [Process(folder, "aggregate", "run.toml", "--broker", broker.url, "--format", "json")]
        for name in DEVICES:
            processes.append(
                Process(
                    folder,
                    *("device", "--broker", broker.url, "--name", name, "--data", str(parts / f"{name}.npz")),
                    *(("--engine", ENGINE) if name in training else ()),
                    python=training.get(name, sys.executable),
                )
            )
        results = [process.end() for process in processes]
    assert [code for code, _, _ in results] == [0, 0, 0, 0], results
    for name in training:
        (downloaded,) = (folder / ".edgefl" / name / "bundles").iterdir()
        assert (downloaded / ENGINE / "checkpoint").exists() and not (downloaded / "programs").exists()
    path = folder / json_of(results[0][1])["run_dir"] / "weights.safetensors"
    return load_tensors(path.read_bytes(), path)


def test_a_device_whose_engine_is_missing_ends_with_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 2), "f4"), y=np.zeros(4, "i8"))
    device = Process(
        tmp_path, "device", "--broker", "mqtt://127.0.0.1:9", "--name", "pi-1", "--data", "data.npz", "--engine", ENGINE
    )
    code, _, err = device.end()
    assert code == 3
    assert "error: the engine onnxruntime-training cannot be used here: onnxruntime " in err
    assert "hint: pip install onnxruntime-training-cpu==1.19.2 edgefl" in err
