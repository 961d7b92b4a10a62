"""A device that a run needs is gone: the run waits as long as it was told to, and ends in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from processes import DEVICES, Process

from edgefl.aggregator.store import read_fleet, read_records
from edgefl.errors import BelowQuorum
from edgefl_broker import RunningBroker

RUN_FILE = """
name = "test"
bundle = "{bundle}"
[method]
name = "fedavg"
rounds = 4000
[round]
min_devices = 3
quorum = 1.0
deadline_s = {seconds}
patience_s = {seconds}
below_quorum = "stop"
"""


def test_the_run_stops_and_says_who_is_gone(
    start: Callable[..., Process], broker: RunningBroker, digits_bundle: Path, parts: Path, tmp_path: Path
) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text(RUN_FILE.format(bundle=digits_bundle, seconds=60.0))
    aggregate = ["aggregate", str(run_file), "--broker", broker.url]
    aggregator = start(*aggregate)
    *_, third = [
        start("device", "--broker", broker.url, "--name", name, "--data", f"{parts / name}.npz") for name in DEVICES
    ]
    aggregator.wait_for_round(1)
    third.kill()
    aggregator.kill()
    run_file.write_text(RUN_FILE.format(bundle=digits_bundle, seconds=0.5))
    code, _, err = start(*aggregate, "--resume").end()
    assert code == BelowQuorum.exit_code == 7
    [said] = [line for line in err.splitlines() if "error: " in line]
    assert " is below its quorum for longer than 0.5 s ([round] patience_s): " in said and "pi-3" in said
    assert "hint: everything is saved: go on with --resume when they are back" in err
    (run_dir,) = (one for one in (tmp_path / "runs").iterdir() if one.is_dir())
    assert read_records(run_dir / "metrics.jsonl")
    assert read_fleet(run_dir)["pi-1"].label_counts is not None
