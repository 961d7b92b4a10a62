"""What a run says where nobody watches: a stream of JSON lines, a log."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
from processes import Process

from edgefl.aggregator.record import Record

Start = Callable[..., Process]
RUN_FILE = """
name = "test"
bundle = "{bundle}"
[method]
rounds = 2
[round]
min_devices = 2
[evaluate]
data = "digits"
[fleet]
devices = 2
data = "digits"
examples = 200
"""


def test_a_run_is_a_stream_of_events_and_a_log_while_stderr_is_silent(
    start: Start, digits_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(RUN_FILE.format(bundle=digits_bundle))
    code, out, err = start("run", "run.toml", "--format", "jsonl", "--quiet", "--log", "run.log").end()
    assert (code, err.strip()) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    kinds = [event["event"] for event in events if event["event"] != "said"]
    assert kinds == ["begun", "round", "round", "result"]
    records = [msgspec.convert(event["record"], Record) for event in events if event["event"] == "round"]
    assert [record.round for record in records] == [1, 2]
    begun, result = (next(e for e in events if e["event"] == kind) for kind in ("begun", "result"))
    assert (begun["rounds"], begun["done"]) == (2, 0)
    assert result["run_dir"] == f"runs/{begun['run']}" and result["accuracy"] == records[-1].accuracy
    assert sorted(event["time"] for event in events) == [event["time"] for event in events]
    log = (tmp_path / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in log)
    assert [line.split()[2] for line in log if "2/2" in line] == ["1", "2"]


def test_a_stream_ends_with_the_error_that_ended_the_run(start: Start, digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN_FILE.format(bundle=digits_bundle).replace("[fleet]", "[flet]"))
    code, out, err = start("run", "run.toml", "--format", "jsonl").end()
    last = json.loads(out.splitlines()[-1])
    assert (code, last["event"], last["exit_code"]) == (3, "error", 3)
    assert f"error: {last['message']}\nhint: {last['hint']}" in err


def test_a_run_whose_device_dies_names_it_and_says_how_to_go_on(
    start: Start, digits_bundle: Path, tmp_path: Path
) -> None:
    text = RUN_FILE.format(bundle=digits_bundle).replace("rounds = 2", "rounds = 200")
    (tmp_path / "run.toml").write_text(text)
    run = start("run", "run.toml")
    run.wait_for_round(1)
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines()
    ours = [line.split(None, 2) for line in listed if line.split()[1] == str(run.child.pid)]
    (device,) = (int(pid) for pid, _, words in ours if "--name device-1 " in words)
    os.kill(device, signal.SIGKILL)
    code, _, err = run.end()
    assert code == 1
    (place,) = (tmp_path / "runs").iterdir()
    assert f"what is done is saved; go on with: edgefl run run.toml --resume {place.name}\n" in err
    assert "error: device-1 was ended by SIGKILL\nhint: its log is runs/test-" in err
