"""The examples of what a stranger may write: a method, a fusion, a weight rule and a loss, by hand and in one run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Process, json_of

from edgefl.aggregator.fusion import fusion_of
from edgefl.aggregator.weights import rule_of
from edgefl.method import Fused, Reply
from edgefl.methods import method_named

EXAMPLES = Path(__file__).parents[2] / "examples"
Start = Callable[..., Process]


def reply(name: str, examples: int, *w: float) -> Reply:
    return Reply(name, 0, examples, {"w": np.array(w, np.float32)}, {})


def test_the_method_goes_part_of_the_way() -> None:
    """From 1 to 5 by a quarter is 2."""
    method = method_named(f"{EXAMPLES}/own_method.py:Patient")(initial={"w": np.ones(1, np.float32)}, part=0.25)
    state = method.advance(method.start(), Fused({"w": np.array([5], np.float32)}, {}, ("a",), 1))
    assert state.tensors["w"] == [2] and state.round == 1


@pytest.mark.parametrize("far", [100.0, 1e6])
def test_the_fusion_is_hardly_moved_by_who_is_far(far: float) -> None:
    """Three around [1, 1] and one anywhere: their mean is far / 4 away, their geometric median less than 1."""
    fusion = fusion_of({"name": f"{EXAMPLES}/own_fusion.py:GeometricMedian", "steps": 20})
    for one in (reply("a", 1, 0, 1), reply("b", 1, 1, 2), reply("c", 1, 2, 0), reply("d", 1, far, far)):
        fusion.add(one, 1.0)
    fused = fusion.finish()
    assert np.abs(fused.tensors["w"] - 1).max() < 1
    assert fused.weights["d"] < 2 / far and sum(fused.weights.values()) == pytest.approx(1)


def test_the_weight_rule_has_a_number() -> None:
    rule = f"{EXAMPLES}/own_weights.py:by_power"
    assert rule_of(rule).weigh(reply("a", 16)) == 4
    assert rule_of({"name": rule, "power": 0.25}).weigh(reply("a", 16)) == 2


def test_all_of_them_in_one_run(start: Start, tmp_path: Path) -> None:
    """Also a resume, after the files are gone."""
    folder = tmp_path / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    path = folder / "own.toml"
    text = path.read_text().replace("rounds = 20", "rounds = 3").replace("devices = 6", "devices = 3")
    path.write_text(text)
    code, out, err = start("run", str(path), "--format", "json").end()
    assert code == 0, err
    records = records_of(json_of(out), tmp_path)
    assert len(records) == 3 and records[-1]["loss"] < records[0]["loss"]
    assert sum(records[0]["weights"].values()) == pytest.approx(1, abs=1e-5)
    (run,) = (place for place in (tmp_path / "runs").iterdir() if place.is_dir())
    assert {"method.py", "fusion.py", "weights.py"} <= {p.name for p in run.iterdir()}

    for name in ("own_method.py", "own_fusion.py", "own_weights.py", "own_loss.py", "digits.py"):
        (folder / name).unlink()
    path.write_text(text.replace("rounds = 3", "rounds = 4"))
    code, out, err = start("run", str(path), "--resume", "--format", "json").end()
    assert code == 0, err
    assert len(records_of(json_of(out), tmp_path)) == 4


def records_of(result: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    text = (folder / result["run_dir"] / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
