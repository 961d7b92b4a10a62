"""edgefl from Python: the example of the documentation, and what a caller sees when things go wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgefl
from edgefl.errors import ConfigError
from edgefl.runs.reports import report_again

EXAMPLE = Path(__file__).parents[2] / "examples" / "from_python.py"


def run_of(bundle: Path, folder: Path, **method: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "bundle": str(bundle),
        "runs": str(folder),
        "method": {"rounds": 2, "epochs": 1, "batch_size": 0, "learning_rate": 0.1, **method},
        "round": {"min_devices": 3},
        "evaluate": {"data": "digits"},
        "fleet": {"devices": 3, "data": "digits", "partition": "iid", "examples": 300},
    }


def test_the_example_runs_and_says_what_it_did(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # the verbs print nothing
    assert re.search(r"round 8: \d\d\.\d%", done.stdout)
    (report,) = (tmp_path / "from-python").glob("digits-*/report.html")
    assert f"report: {report.relative_to(tmp_path)}" in done.stdout
    assert "'train.loss':" in done.stdout


def test_a_simulated_run_ends_with_the_weights_of_a_real_one(digits_bundle: Path, tmp_path: Path) -> None:
    """One full batch an epoch, so that nothing depends on the order of examples but rounding."""
    run = run_of(digits_bundle, tmp_path)
    seen: list[edgefl.Record] = []
    simulated = edgefl.simulate(run, on_round=seen.append)
    real = edgefl.run(run)
    assert [record.round for record in seen] == [1, 2] and tuple(seen) == simulated.history
    assert real.rounds == 2 and real.finished and real.accuracy == pytest.approx(simulated.accuracy)
    weights = real.weights()
    for name, value in simulated.weights.items():
        np.testing.assert_allclose(weights[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    rows = real.records
    assert [row["round"] for row in rows] == [1, 2] and rows[0]["train.loss"] > rows[1]["train.loss"]


def test_a_simulated_device_states_what_a_process_would_state(digits_bundle: Path, tmp_path: Path) -> None:
    one = {"path": str(digits_bundle), "for": "memory_mb >= 1 and cores >= 1 and engine == portable"}
    run = run_of(digits_bundle, tmp_path, rounds=1)
    assert len(edgefl.simulate(run | {"bundle": [one]}).history) == 1
    with pytest.raises(ConfigError, match="no .* is for memory_mb ") as refused:
        edgefl.simulate(run | {"bundle": [one | {"for": "cores > 100000"}]})
    assert refused.value.hint == "of device-1: give [fleet] a profile, or the run a [[bundle]] without `for`"


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"rounds": 3}, "run: unknown key 'rounds'", "did you mean 'round'?"),
        ({"method": {"name": "fedavgg"}}, "run: [method] name is 'fedavgg'", "did you mean 'fedavg'?"),
        ({"fleet": {"devices": 0, "data": "digits"}}, "run: fleet.devices: Expected `int` >= 1", None),
    ],
)
def test_a_run_that_is_wrong_is_one_line(
    digits_bundle: Path, tmp_path: Path, change: dict[str, Any], message: str, hint: str | None
) -> None:
    for verb in (edgefl.run, edgefl.simulate):
        with pytest.raises(ConfigError) as refused:
            verb(run_of(digits_bundle, tmp_path) | change)
        assert refused.value.message == message and refused.value.hint == hint
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_comes_when_everything_is_saved_and_a_resume_goes_on(digits_bundle: Path, tmp_path: Path) -> None:
    run = run_of(digits_bundle, tmp_path, rounds=50)

    def interrupt(record: edgefl.Record) -> None:
        if record.round == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(edgefl.Interrupted) as stopped:
        edgefl.run(run, on_round=interrupt)
    result = stopped.value.result
    reached = result.rounds
    assert isinstance(stopped.value, KeyboardInterrupt) and not result.finished and 2 <= reached < 50
    after = edgefl.run(run_of(digits_bundle, tmp_path, rounds=reached + 1), resume=True)
    assert after.path == result.path and after.finished and after.rounds == reached + 1


def test_ctrl_c_while_the_report_is_written_leaves_a_finished_run(
    digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*about: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgefl.runs.run.write_run_report", interrupted)
    with pytest.raises(edgefl.Interrupted, match="finished, but its report was not written") as stopped:
        edgefl.run(run_of(digits_bundle, tmp_path, rounds=1))
    result = stopped.value.result
    assert result.finished and result.models and not result.report().exists()
    monkeypatch.undo()
    written, _ = report_again(result.path, progress=print)
    assert written == result.report() and written.exists()


def test_a_run_may_be_carried_beside_the_main_thread(digits_bundle: Path, tmp_path: Path) -> None:
    """As a notebook's server does; only the main thread may handle signals."""
    found: list[edgefl.Result] = []
    thread = threading.Thread(target=lambda: found.append(edgefl.run(run_of(digits_bundle, tmp_path, rounds=1))))
    thread.start()
    thread.join(60)
    assert [result.rounds for result in found] == [1]


def test_importing_edgefl_imports_nothing_heavy() -> None:
    heavy = ["numpy", "msgspec", "torch", "onnx", "paho", "click"]
    script = f"import sys, edgefl; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert set(edgefl.__all__) <= set(dir(edgefl))
    with pytest.raises(AttributeError, match="no attribute 'rn'"):
        edgefl.rn  # noqa: B018
