"""FedMRL from a run file: devices of two classes, real processes, a real broker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from processes import Process, json_of

from edgefl.runs.run_file import read_run_file
from edgefl.tensors import load_tensors

Start = Callable[..., Process]
EXAMPLES = Path(__file__).parents[2] / "examples"
NETS = """
import torch
from torch import nn

def net(features):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, features), nn.ReLU(), nn.Linear(features, 10)]
    return nn.Sequential(*layers), torch.zeros(1, 1, 8, 8)

def small():
    return net(16)

def narrow():
    return net(20)

def wide():
    return net(40)
"""
RUN = """
name = "two"
[method]
name = "fedmrl"
rounds = 4
epochs = 4
batch_size = 16
learning_rate = 0.05
evaluate = true
[round]
min_devices = 4
deadline_s = 60.0
[[bundle]]
model = "nets.py:wide"
options = { method = "fedmrl", small = "nets.py:small" }
for = "memory_mb >= 1000"
[[bundle]]
model = "nets.py:narrow"
options = { method = "fedmrl", small = "nets.py:small" }
[fleet]
devices = 4
data = "digits"
partition = "classes"
per_device = 3
[[fleet.profile]]
memory_mb = 2000
[[fleet.profile]]
memory_mb = 500
"""


def test_models_of_two_sizes_learn_from_each_other_and_only_the_small_one_travels(start: Start, tmp_path: Path) -> None:
    (tmp_path / "runs.d").mkdir()
    (tmp_path / "runs.d/nets.py").write_text(NETS)  # named in the run file as seen from there
    (tmp_path / "runs.d/run.toml").write_text(RUN)
    code, out, err = start("run", "runs.d/run.toml", "--format", "json").end()
    assert code == 0, err
    place = tmp_path / json_of(out)["run_dir"]

    records = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [r["replies"] for r in records] == [4] * 4
    weights = load_tensors((place / "weights.safetensors").read_bytes(), "it")
    assert {name: value.shape for name, value in weights.items()} == {
        "small.extractor.1.weight": (16, 64),
        "small.extractor.1.bias": (16,),
        "small.head.weight": (10, 16),
        "small.head.bias": (10,),
    }
    shared = sum(value.nbytes for value in weights.values())
    per_reply = records[-1]["bytes_up"] / 4
    assert shared < per_reply < 2 * shared + 2000  # the projector alone of the wide model has 40 * 56 numbers
    assert records[-1]["accuracy"] > 0.9  # three digits each, on their own test data


def test_the_example_is_a_run_file() -> None:
    run = read_run_file(EXAMPLES / "fedmrl.toml")
    assert [one.class_name for one in run.bundles] == ["huge", "large", "medium", "modest", "tiny"]
    assert all(Path(str(one.options["small"]).partition(":")[0]).is_file() for one in run.bundles)
    assert run.fleet is not None and len(run.fleet.profile) == 5
