"""A run as a person starts it, and what happens to it when things are killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from processes import DEVICES, Process, json_of

import edgefl_broker
from edgefl.results.confusion import read_confusion
from edgefl.tensors import load_tensors
from edgefl_broker import RunningBroker
from edgefl_device.sources import read_splits

Start = Callable[..., Process]


def write_run_file(folder: Path, bundle: Path, rounds: int, extra: str = "") -> Path:
    path = folder / "run.toml"
    path.write_text(
        f"""
name = "test"
bundle = "{bundle}"
{extra}
[method]
name = "fedavg"
rounds = {rounds}
epochs = 1
batch_size = 16
learning_rate = 0.1
[round]
min_devices = 3
deadline_s = 30.0
[evaluate]
data = "digits"
"""
    )
    return path


def start_devices(start: Start, url: str, parts: Path) -> list[Process]:
    return [start("device", "--broker", url, "--name", name, "--data", f"{parts / name}.npz") for name in DEVICES]


def weights_of(run_dir: str, folder: Path) -> dict[str, np.ndarray]:
    path = folder / run_dir / "weights.safetensors"
    return load_tensors(path.read_bytes(), path)


@pytest.fixture(scope="module")
def unbroken(digits_bundle: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The weights of eight rounds in which nothing went wrong."""
    folder = tmp_path_factory.mktemp("unbroken")
    run_file = write_run_file(folder, digits_bundle, 8)
    processes: list[Process] = []

    def start(*arguments: str) -> Process:
        processes.append(Process(folder, *arguments))
        return processes[-1]

    with edgefl_broker.start() as broker:
        aggregator = start("aggregate", str(run_file), "--broker", broker.url, "--format", "json")
        start_devices(start, broker.url, parts)
        results = [process.end() for process in processes]
    assert [code for code, _, _ in results] == [0, 0, 0, 0], results
    assert aggregator.child.returncode == 0
    return weights_of(json_of(results[0][1])["run_dir"], folder)


def assert_same_weights(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """Equal to rounding: only the order in which replies are summed differs. A reply counted twice, or a round
    left out, moves them by thousands of times more."""
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5, err_msg=name)


def test_one_command_trains_a_fleet_and_leaves_a_run_directory(
    start: Start, digits_bundle: Path, tmp_path: Path
) -> None:
    extra = '[fleet]\ndevices = 4\ndata = "digits"\npartition = "dirichlet"\nalpha = 0.5\n'
    run_file = write_run_file(tmp_path, digits_bundle, 25, extra)
    run_file.write_text(run_file.read_text().replace("min_devices = 3", "min_devices = 4") + "target_accuracy = 0.9\n")
    code, out, err = start("run", str(run_file), "--format", "json").end()
    assert code == 0, err
    result = json_of(out)
    assert result["accuracy"] >= 0.9
    run_dir = tmp_path / result["run_dir"]
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in records] == list(range(1, result["rounds"] + 1))
    assert all(r["replies"] == 4 for r in records)
    assert records[-1]["accuracy"] == result["accuracy"] and records[-2]["accuracy"] < 0.9
    assert result["bytes_up"] == sum(r["bytes_up"] for r in records)
    assert f"to {result['accuracy']:.2%} test accuracy" in (run_dir / "report.html").read_text()
    assert run_dir.name in (run_dir.parent / "index.html").read_text()

    # The inference model needs nothing but features, and is as good as the table says.
    test = read_splits("digits").test
    assert test is not None
    session = onnxruntime.InferenceSession(run_dir / "model.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x"]
    logits = session.run(None, {"x": test.features})[0]
    taken = logits.argmax(axis=1)
    assert np.mean(taken == test.labels) == pytest.approx(result["accuracy"])
    about = session.get_modelmeta().custom_metadata_map
    assert (about["run"], about["method"]) == (run_dir.name, "fedavg")
    assert float(about["accuracy"]) == pytest.approx(result["accuracy"], abs=1e-6)
    found = read_confusion(run_dir)
    assert found is not None and found.classes == json.loads(about["classes"]) == [str(n) for n in range(10)]
    assert found.matrix[8][1] == np.sum((test.labels == 8) & (taken == 1)) and found.round == result["rounds"]
    assert sum(found.matrix[n][n] for n in range(10)) == np.sum(taken == test.labels)


def test_an_aggregator_killed_in_three_rounds_ends_with_the_weights_of_an_unbroken_run(
    start: Start,
    broker: RunningBroker,
    digits_bundle: Path,
    parts: Path,
    tmp_path: Path,
    unbroken: dict[str, np.ndarray],
) -> None:
    run_file = write_run_file(tmp_path, digits_bundle, 8)
    aggregate = ["aggregate", str(run_file), "--broker", broker.url, "--format", "json"]
    aggregator = start(*aggregate)
    devices = start_devices(start, broker.url, parts)
    for number in (2, 4, 5):
        aggregator.wait_for_round(number)
        aggregator.kill()
        aggregator = start(*aggregate, "--resume")
    code, out, err = aggregator.end()
    assert code == 0, err
    result = json_of(out)
    assert result["rounds"] == 8 and result["finished"]
    records = (tmp_path / result["run_dir"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in records] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [device.end()[0] for device in devices] == [0, 0, 0]
    assert_same_weights(weights_of(result["run_dir"], tmp_path), unbroken)


def test_a_device_killed_twice_comes_back_and_nothing_is_lost_or_counted_twice(
    start: Start,
    broker: RunningBroker,
    digits_bundle: Path,
    parts: Path,
    tmp_path: Path,
    unbroken: dict[str, np.ndarray],
) -> None:
    # Every device is needed, so a round waits for the one that comes back.
    run_file = write_run_file(tmp_path, digits_bundle, 8)
    run_file.write_text(run_file.read_text().replace("[round]", "[round]\nquorum = 1.0"))
    aggregator = start("aggregate", str(run_file), "--broker", broker.url, "--format", "json")
    devices = start_devices(start, broker.url, parts)
    for number in (2, 4):
        aggregator.wait_for_round(number)
        devices[0].kill()
        devices[0] = start(
            "device", "--broker", broker.url, "--name", "pi-1", "--data", f"{parts / 'pi-1'}.npz"
        )  # its state is still in HOME
    code, out, err = aggregator.end()
    assert code == 0, err
    assert_same_weights(weights_of(json_of(out)["run_dir"], tmp_path), unbroken)
    assert [device.end()[0] for device in devices] == [0, 0, 0]
    state = tmp_path / ".edgefl" / "pi-1"
    (run,) = json.loads((state / "runs.json").read_text())
    assert run["finished"] and (state / f"{run['name']}.journal").exists()  # `--keep` later ones, and it goes
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in [state, *state.rglob("*")]}
    assert modes == {(True, 0o700), (False, 0o600)}


def test_a_broker_that_is_killed_and_restarted_loses_nothing(
    start: Start, digits_bundle: Path, parts: Path, tmp_path: Path, unbroken: dict[str, np.ndarray]
) -> None:
    run_file = write_run_file(tmp_path, digits_bundle, 8)
    run_file.write_text(run_file.read_text().replace("[round]", "[round]\nquorum = 1.0"))
    first = edgefl_broker.start()
    try:
        aggregator = start("aggregate", str(run_file), "--broker", first.url, "--format", "json")
        devices = start_devices(start, first.url, parts)
        aggregator.wait_for_round(3)
        first.process.kill()
        first.process.wait(10)
    finally:
        first.stop()
    with edgefl_broker.start(port=int(first.url.rpartition(":")[2])):
        code, out, err = aggregator.end()
        assert code == 0, err
        assert [device.end()[0] for device in devices] == [0, 0, 0]
    assert_same_weights(weights_of(json_of(out)["run_dir"], tmp_path), unbroken)


def test_ctrl_c_saves_and_says_how_to_go_on(
    start: Start,
    broker: RunningBroker,
    digits_bundle: Path,
    parts: Path,
    tmp_path: Path,
    unbroken: dict[str, np.ndarray],
) -> None:
    run_file = write_run_file(tmp_path, digits_bundle, 8)
    aggregator = start("aggregate", str(run_file), "--broker", broker.url)
    devices = start_devices(start, broker.url, parts)
    aggregator.wait_for_round(2)
    aggregator.child.send_signal(signal.SIGINT)
    code, _, err = aggregator.end()
    assert code == 130
    hint = f"go on with: edgefl aggregate {run_file} --broker {broker.url} --resume"
    assert hint in err
    assert "everything is saved in runs/test-" in err
    code, out, err = start(*hint.removeprefix("go on with: edgefl ").split(), "--format", "json").end()
    assert code == 0, err
    assert json_of(out)["rounds"] == 8
    assert [device.end()[0] for device in devices] == [0, 0, 0]


def test_a_resume_keeps_the_fleet_of_the_run_whatever_the_file_says_now(
    start: Start, digits_bundle: Path, tmp_path: Path
) -> None:
    """Three devices begin; the file is changed to two devices with another split and more rounds; three go on, with
    the data they had."""
    run_file = write_run_file(tmp_path, digits_bundle, 40, '[fleet]\ndevices = 3\ndata = "digits"\n')
    first = start("run", str(run_file))
    first.wait_for_round(2)
    first.child.send_signal(signal.SIGINT)
    assert first.end()[0] == 130
    (run_dir,) = (tmp_path / "runs").iterdir()
    parts = {path.name: path.read_bytes() for path in (run_dir / "data").iterdir()}
    text = run_file.read_text().replace("\ndevices = 3", '\ndevices = 2\npartition = "dirichlet"')
    done = len((run_dir / "metrics.jsonl").read_text().splitlines())
    run_file.write_text(text.replace("rounds = 40", f"rounds = {done + 2}"))
    code, out, err = start("run", str(run_file), "--resume", "--format", "json").end()
    assert code == 0, err
    assert json_of(out)["rounds"] == done + 2
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["devices"] == ["device-1", "device-2", "device-3"]
    assert {path.name: path.read_bytes() for path in (run_dir / "data").iterdir()} == parts
