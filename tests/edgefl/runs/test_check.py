"""`edgefl check`: what a run would find wrong, found without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgefl_broker
from edgefl.bundle import Bundle
from edgefl.cli import main

RUN_FILE = """
name = "lines"
bundle = "{bundle}"
[method]
rounds = 3
[evaluate]
data = "lines.npz"
[fleet]
devices = 2
data = "lines.npz"
"""


@pytest.fixture
def run_file(regression: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the hand-made regression, with four examples beside it."""
    monkeypatch.chdir(tmp_path)
    np.savez("lines.npz", x=np.ones((4, 2), np.float32), y=np.ones((4, 1), np.float32))
    path = tmp_path / "lines.toml"
    path.write_text(RUN_FILE.format(bundle=regression.path))
    return path


def check(run_file: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what is said of each thing: its fault, else what there is."""
    done = CliRunner().invoke(main, ["check", str(run_file), "--format", "json", *words])
    result = json.loads(done.stdout)
    assert result["ready"] == (done.exit_code == 0)
    return done.exit_code, {one["what"]: one["fault"] or one["said"] for one in result["checked"]}


def test_a_run_that_can_begin_is_said_in_full_and_nothing_is_kept(run_file: Path) -> None:
    code, said = check(run_file)
    assert code == 0 and list(said) == ["run file", "bundle", "method", "evaluate", "fleet", "broker"]
    assert said["method"] == "fedavg, 3 rounds; a round needs 1 devices to begin"
    assert said["fleet"].startswith("2 devices with 2 to 2 examples of ")
    assert sorted(path.name for path in run_file.parent.iterdir()) == ["lines.npz", "lines.toml"]


def test_every_fault_is_named_and_the_first_decides_the_exit_code(run_file: Path) -> None:
    np.savez("lines.npz", x=np.ones((4, 3), np.float32), y=np.ones((4, 1), np.float32))
    text = run_file.read_text().replace("rounds = 3", 'rounds = 3\nfusion = "nope.py:mine"')
    run_file.write_text(text.replace("[fleet]", '[broker]\nurl = "mqtt://127.0.0.1:1"\n[fleet]'))
    code, said = check(run_file)
    assert code == 3
    assert "no file" in said["method"] and "nope.py" in said["method"]
    assert "[2]" in said["fleet"] and said["fleet"].startswith("device-1: ")
    assert "no broker answers at mqtt://127.0.0.1:1" in said["broker"]


def test_a_fleet_that_is_too_small_would_wait(run_file: Path) -> None:
    run_file.write_text(run_file.read_text() + "[round]\nmin_devices = 3\n")
    assert check(run_file)[1]["fleet"] == "[round] min_devices is 3, but [fleet] has 2 devices: a run would wait"


def test_a_run_file_that_cannot_be_read_is_all_there_is_to_say(run_file: Path) -> None:
    run_file.write_text(run_file.read_text().replace("rounds", "ronds"))
    code, said = check(run_file)
    assert code == 3 and list(said) == ["run file"] and "unknown key 'ronds'" in said["run file"]


def test_the_broker_is_connected_to(run_file: Path) -> None:
    with edgefl_broker.start() as broker:
        code, said = check(run_file, "--broker", broker.url.replace("//", "//me:s3cret@"))
    assert (code, said["broker"]) == (0, f"{broker.url} answers")


def test_faults_and_hints_are_lines_for_a_person(run_file: Path) -> None:
    run_file.write_text(run_file.read_text().replace("bundle = ", 'bundle = "gone.bundle" #'))
    done = CliRunner().invoke(main, ["check", str(run_file)])
    lines = done.stdout.splitlines()
    assert lines[1].startswith("bundle    fault: no bundle at ") and lines[2].startswith("          hint: make one")
    assert done.exit_code == 3 and done.stderr == ""
