"""A whole run, real processes over a real broker, with one device that means harm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hostile import Answer, Hostile
from processes import Process, json_of

import edgefl_broker
from edgefl.bundle import Bundle
from edgefl.tensors import Array, load_tensors

TRUE = np.array([1, -2], np.float32)
HONEST = {"pi-1": 20, "pi-2": 30}  # examples of y = [1, -2] x
ROUNDS = 12


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(3)
    for name, size in {**HONEST, "held_out": 10}.items():
        x = rng.normal(size=(size, 2)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=x @ TRUE)


def write_run_file(folder: Path, bundle: Bundle, method: str, *, evaluate: bool, more: str = "") -> Path:
    path = folder / "run.toml"
    path.write_text(
        f"""
name = "attacked"
bundle = "{bundle.path}"
[method]
{method}
rounds = {ROUNDS}
batch_size = 0
learning_rate = 0.3
[round]
min_devices = 3
deadline_s = 30.0
{more}
"""
        + (f'[evaluate]\ndata = "{folder / "held_out.npz"}"\n' if evaluate else "")
    )
    return path


def answer(round: int) -> tuple[Mapping[str, Array], int]:
    """What mallory sends: too many examples; a reply times -1000; a billion examples, as it stated; then 3e38."""
    sent = {0: (0.0, 2**53), 1: (-1000.0, 60), 3: (0.0, 10**9)}
    value, examples = sent.get(round, (3e38, 60))
    return {"w": np.full(2, value, np.float32)}, examples


def attack(folder: Path, path: Path, answer: Answer) -> tuple[Hostile, Path]:
    """Mallory after a run, which ends as it should, and the run's directory."""
    with edgefl_broker.start() as broker:
        mallory = Hostile(broker.url, "mallory", answer, states=10**9)
        mallory.start()
        processes = [Process(folder, "aggregate", str(path), "--broker", broker.url, "--format", "json")]
        for name in HONEST:
            words = ["--broker", broker.url, "--name", name, "--data", f"{name}.npz"]
            processes.append(Process(folder, "device", *words))
        (code, out, err), *devices = [process.end() for process in processes]
        mallory.join(20)
    assert code == 0 and [device[0] for device in devices] == [0, 0], err
    return mallory, folder / json_of(out)["run_dir"]


@pytest.mark.parametrize(
    ("method", "evaluate", "honest"),
    [
        ('name = "fedavg"', True, (1, -2)),
        ('name = "fedadam"\nserver_learning_rate = 0.3', False, (0.56, -2.77)),  # Adam is past the goal, and comes back
    ],
    ids=["fedavg, evaluated", "fedadam"],
)
def test_one_device_neither_ends_a_run_nor_owns_it(
    tmp_path: Path, regression: Bundle, method: str, evaluate: bool, honest: tuple[float, float]
) -> None:
    """Two honest devices come to where they come without mallory."""
    write_data(tmp_path)
    path = write_run_file(tmp_path, regression, method, evaluate=evaluate)
    mallory, place = attack(tmp_path, path, answer)
    w = load_tensors((place / "weights.safetensors").read_bytes(), place)["w"]
    np.testing.assert_allclose(w, honest, atol=0.1)

    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    ((round, undone),) = [(e["round"], e["text"]) for e in events if e["event"] == "undone"]
    assert round == 2 and undone.startswith("a change of norm 1.41e+03 beside a median of ")
    assert undone.endswith("; asked again without mallory")
    records = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == list(range(1, ROUNDS + 1))
    shares = {record["round"]: record["weights"]["mallory"] for record in records if "mallory" in record["weights"]}
    assert shares == {4: pytest.approx(90 / (20 + 30 + 90), abs=1e-6)}  # three times the median of 20, 30, a billion
    assert all(record["metrics"]["train.loss"] < 10 for record in records)
    reasons = {round: reason for round, status, reason in mallory.receipts if status == "refused"}
    assert reasons[0] == "9007199254740992 examples; device 'mallory' stated 1000000000 when it joined"
    assert "a change of norm inf" in reasons[4]
    assert 2 not in reasons and 6 not in reasons  # a device that lied twice in a row is left alone for a round


def test_a_held_out_loss_of_infinity_undoes_the_round(tmp_path: Path, regression: Bundle) -> None:
    """With no limit of norms the state is finite, and what it predicts is not: that ended the aggregator."""
    write_data(tmp_path)
    path = write_run_file(tmp_path, regression, 'name = "fedavg"', evaluate=True, more="max_norm = 0")
    path.write_text(path.read_text().replace(f"rounds = {ROUNDS}", "rounds = 3"))
    _, place = attack(tmp_path, path, lambda round: ({"w": np.full(2, 3e38, np.float32)}, 60))
    records = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [(record["round"], record["devices"]) for record in records] == [(n, list(HONEST)) for n in (1, 2, 3)]
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    undone = [event["text"] for event in events if event["event"] == "undone"]
    assert undone and all("evaluate.loss is inf" in text for text in undone)  # after the first it is asked more rarely
