"""Runs of CoDream in real processes: what they leave, a device that cannot dream, and a kill among the dreams."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from dreamers import export_dreamers
from processes import Process, json_of

Start = Callable[..., Process]
RUN_FILE = """
name = "dreams"
[method]
name = "codream"
epochs = 2
warm_up = 3
dreams = 6
dream_steps = {steps}
refresh = 7
distill_epochs = 2
train_epochs = 1
evaluate = true
likeness_limit = 0.01
[round]
min_devices = 3
quorum = 0.5
deadline_s = 30.0
[[bundle]]
path = "dense.bundle"
devices = ["device-1"]
[[bundle]]
path = "normalised.bundle"
devices = ["device-2"]
[[bundle]]
path = "dense.bundle"
name = "third"
{third}
[student]
path = "dense.bundle"
[evaluate]
data = "digits"
[fleet]
devices = 3
data = "digits"
examples = 90
"""


@pytest.fixture(scope="module")
def bundles(once: Callable[..., Path]) -> Path:
    return once("dreamers", export_dreamers)


def write_run_file(folder: Path, bundles: Path, *, steps: int, third: str = "") -> Path:
    path = folder / "run.toml"
    text = RUN_FILE.format(steps=steps, third=third)
    path.write_text(text.replace('path = "', f'path = "{bundles}/'))
    return path


def finished(process: Process, folder: Path) -> tuple[Path, list[dict[str, Any]], str]:
    """The run directory, its records, and what was said."""
    code, out, err = process.end()
    assert code == 0, err
    place = folder / json_of(out)["run_dir"]
    return place, [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()], err


def test_devices_dream_and_one_that_cannot_is_refused_by_name(start: Start, bundles: Path, tmp_path: Path) -> None:
    path = write_run_file(tmp_path, bundles, steps=10, third="settings = { statistics = 3e38 }")
    place, records, said = finished(start("run", str(path), "--format", "json"), tmp_path)

    assert len(records) == 1 + 2 * (10 + 2)
    events = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    failed = [event for event in events if event["event"] == "failed"]
    assert {event["device"] for event in failed} == {"device-3"}
    assert "dream" in failed[0]["text"] and "not finite" in failed[0]["text"]
    dreamed = [record for record in records if "dream.loss" in record["metrics"]]
    assert len(dreamed) == 20 and all(record["devices"] == ["device-1", "device-2"] for record in dreamed)

    learned = [record for record in records if "distill.loss" in record["metrics"]]
    assert len(learned) == 2 and all(len(record["devices"]) == 3 for record in learned)  # learning needs no gradient
    assert all(0 < record["measured"]["device-1"]["likeness.likeness_most"] <= 1.001 for record in learned)
    assert "a dream is like an image of" in said and "likeness_limit" in said
    assert records[0]["accuracy"] != learned[-1]["accuracy"]  # the student's

    names = sorted(p.name for p in (place / "pictures").iterdir())
    assert names == [f"epoch-00{epoch}{kind}.png" for epoch in (1, 2) for kind in ("-path", "")]
    report = (place / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 4 and "Each device on its own test data" in report
    session = onnxruntime.InferenceSession(place / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": np.zeros((2, 1, 8, 8), np.float32)})
    assert logits.shape == (2, 10)

    again = start("report", str(place), "--beside", str(place))
    code, out, err = again.end()
    assert code == 0, err
    assert out.strip() == f"report: {place / 'report.html'}"
    code, _, err = start("report", str(tmp_path)).end()
    assert code == 3 and "holds no finished round of a run" in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[student]", "[student]", "the student cannot dream"),
        (
            "quorum = 0.5",
            "quorum = 0.5\nfraction = 0.5",
            "not asked to warm up would dream untrained",
        ),
        ("distill_epochs = 2", 'distill_epochs = 2\nweight = "examples*steps"', "needs 'solver_steps' of program"),
        ("dreams = 6", "dreams = 9", "but the bundles compare 6 with a device's own images"),
        ("[student]\n", "[other]\n", "unknown key 'other'"),
    ],
)
def test_what_cannot_end_well_does_not_begin(
    start: Start, bundles: Path, digits_bundle: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write_run_file(tmp_path, bundles, steps=10)
    text = path.read_text().replace(old, new)
    if "student cannot" in message:
        before, _, after = text.partition(f'[student]\npath = "{bundles}/dense.bundle"')
        text = f'{before}[student]\npath = "{digits_bundle}"{after}'
    path.write_text(text)
    code, _, err = start("run", str(path)).end()
    assert code == 3
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], err
    assert "round " not in err


def test_a_rule_of_ones_own_weighs_labels_and_no_gradients(start: Start, bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.py").write_text("def mine(reply):\n    return float(reply.examples)\n")
    path = write_run_file(tmp_path, bundles, steps=2)
    path.write_text(path.read_text().replace("epochs = 2\n", 'epochs = 1\nweight = "weights.py:mine"\n', 1))
    _, records, _ = finished(start("run", str(path), "--format", "json"), tmp_path)
    labelled = [record["weights"] for record in records if "predict.examples" in record["metrics"]]
    assert len(labelled) == 1 and list(labelled[0].values()) == [round(1 / 3, 6)] * 3  # 30 examples each


@pytest.mark.parametrize(("dreams_as", "end"), [("uint8", signal.SIGKILL), ("change", signal.SIGINT)])
def test_stopped_among_the_dreams_a_run_dreams_the_same(
    start: Start, bundles: Path, tmp_path: Path, dreams_as: str, end: signal.Signals
) -> None:
    path = write_run_file(tmp_path, bundles, steps=30)
    path.write_text(path.read_text().replace("dreams = 6\n", f'dreams = 6\ndreams_as = "{dreams_as}"\n', 1))
    unbroken, _, _ = finished(start("run", str(path), "--format", "json"), tmp_path)
    stopped = start("run", str(path), "--format", "json")
    stopped.wait_for_round(1)
    stopped.child.send_signal(end)
    stopped.child.wait(60)
    resumed, records, _ = finished(start("run", str(path), "--format", "json", "--resume"), tmp_path)
    assert resumed != unbroken
    assert [record["round"] for record in records] == list(range(1, 1 + 1 + 2 * 32))
    for name in ("epoch-001.png", "epoch-001-path.png", "epoch-002.png"):
        assert (resumed / "pictures" / name).read_bytes() == (unbroken / "pictures" / name).read_bytes(), name
    assert (resumed / "weights.safetensors").read_bytes() == (unbroken / "weights.safetensors").read_bytes()
