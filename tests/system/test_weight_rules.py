"""Weight rules in whole runs: one's own that a resume still has, and weights learned on held-out examples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Process, json_of

from edgefl_exporter import export
from edgefl_exporter.models.load_model import load_model

Start = Callable[..., Process]
MINE = """
def mine(reply):
    return 2.0 if reply.device == "device-1" else 1.0 + reply.metrics["train.examples"] * 0
"""


def write_run_file(folder: Path, bundle: Path, rounds: int, weight: str, held_out: int = 0) -> Path:
    path = folder / "run.toml"
    path.write_text(
        f"""
name = "weights"
bundle = "{bundle}"
[method]
rounds = {rounds}
learning_rate = 0.1
weight = "{weight}"
[round]
min_devices = 3
deadline_s = 30.0
[evaluate]
data = "digits"
held_out = {held_out}
[fleet]
devices = 3
data = "digits"
"""
    )
    return path


def records_of(result: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    text = (folder / result["run_dir"] / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def run(start: Start, path: Path, *options: str) -> list[dict[str, Any]]:
    code, out, err = start("run", str(path), "--format", "json", *options).end()
    assert code == 0, err
    return records_of(json_of(out), path.parent)


def test_a_rule_of_ones_own_is_kept_for_a_resume(start: Start, digits_bundle: Path, tmp_path: Path) -> None:
    rule = tmp_path / "weights.py"
    rule.write_text(MINE)
    path = write_run_file(tmp_path, digits_bundle, 1, "weights.py:mine")
    (first,) = run(start, path)
    assert first["weights"] == {"device-1": 0.5, "device-2": 0.25, "device-3": 0.25}
    rule.unlink()
    write_run_file(tmp_path, digits_bundle, 2, "weights.py:mine")
    records = run(start, path, "--resume")
    assert [record["round"] for record in records] == [1, 2]
    assert records[1]["weights"] == first["weights"]

    code, _, err = start("run", str(path)).end()  # a new run has no copy
    assert code == 3
    assert "no file" in err and "its path is seen from the run file" in err
    assert len([place for place in (tmp_path / "runs").iterdir() if place.is_dir()]) == 1


@pytest.fixture(scope="module")
def with_gradient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gradient") / "digits.bundle"
    loaded = load_model("zoo:digits")
    programs = ("train", "gradient", "evaluate", "predict")
    export(loaded.module, loaded.example, out=out, name="digits", programs=programs)
    return out


def test_learned_weights_are_never_worse_than_those_by_examples(
    start: Start, with_gradient: Path, tmp_path: Path
) -> None:
    records = run(start, write_run_file(tmp_path, with_gradient, 3, "learned", held_out=100))
    for record in records:
        assert record["metrics"]["held_out.loss"] <= record["metrics"]["held_out.start_loss"]
        assert sum(record["weights"].values()) == pytest.approx(1, abs=1e-5)
        right = record["accuracy"] * 260  # of the 360 examples for tests 100 are held out
        assert right == pytest.approx(round(right), abs=1e-6)
    assert records[0]["metrics"]["held_out.loss"] < records[0]["metrics"]["held_out.start_loss"]


def test_a_bundle_without_gradients_is_refused_before_the_run(
    start: Start, digits_bundle: Path, tmp_path: Path
) -> None:
    code, _, err = start("run", str(write_run_file(tmp_path, digits_bundle, 1, "learned", held_out=100))).end()
    assert code == 3
    assert "weight rule 'learned' needs program 'gradient', which bundle" in err
    assert "hint: export it with --programs train,gradient,evaluate,predict" in err
