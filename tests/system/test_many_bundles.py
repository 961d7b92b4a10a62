"""One run of FedMRL on devices of two classes: who gets which bundle, and what never leaves a device."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from processes import Process, json_of
from torch import nn

from edgefl import bundle as bundles
from edgefl import protocol
from edgefl.address import Address
from edgefl.mqtt import Connection
from edgefl.tensors import load_tensors
from edgefl.transport import Received
from edgefl_broker import RunningBroker
from edgefl_device.sources import read_splits
from edgefl_device.work.journal import Journal
from edgefl_exporter import export
from edgefl_exporter.methods import FedMRL

Start = Callable[..., Process]
MEMORY = {"pi-1": 8000, "pi-2": 500, "pi-3": 500}
PRIVATE = (b"local.", b"projector.")


def net(width: int, depth: int = 1) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


@pytest.fixture(scope="session")
def dolls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles large.bundle and little.bundle: local models of two architectures around one small model."""
    folder = tmp_path_factory.mktemp("dolls")
    for name, width, depth in (("large", 24, 2), ("little", 12, 1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            small, local = net(8), net(width, depth)
        out = folder / f"{name}.bundle"
        export(local, torch.zeros(1, 1, 8, 8), out=out, name=name, method=FedMRL(small=small))
    return folder


def write_run_file(folder: Path, dolls: Path, *, rounds: int, rest: str = "") -> Path:
    path = folder / "run.toml"
    path.write_text(
        f"""
name = "dolls"
[method]
name = "fedmrl"
rounds = {rounds}
epochs = 1
batch_size = 16
learning_rate = 0.05
evaluate = true
[round]
min_devices = 3
quorum = 1.0
deadline_s = 30.0
[[bundle]]
path = "{dolls / "large.bundle"}"
for = "memory_mb >= 4000"
[[bundle]]
path = "{dolls / "little.bundle"}"
{rest}
"""
    )
    return path


def start_device(start: Start, url: str, parts: Path, name: str) -> Process:
    data, memory = str(parts / f"{name}.npz"), str(MEMORY[name])
    return start("device", "--broker", url, "--name", name, "--data", data, "--memory-mb", memory)


def test_private_state_survives_a_kill_and_is_never_on_the_wire(
    start: Start, broker: RunningBroker, dolls: Path, parts: Path, tmp_path: Path
) -> None:
    tap = Connection(Address.parse(broker.url), "tap")
    tap.subscribe("edgefl/#")
    tap.connect()
    run_file = write_run_file(tmp_path, dolls, rounds=6)
    aggregator = start("aggregate", str(run_file), "--broker", broker.url, "--format", "json")
    devices = {name: start_device(start, broker.url, parts, name) for name in MEMORY}
    seen: list[dict[str, np.ndarray]] = []
    for number in (2, 4):  # the large device is killed, and comes back: every round waits for it
        aggregator.wait_for_round(number)
        devices["pi-1"].kill()
        seen.append(private_of(tmp_path, "pi-1"))
        devices["pi-1"] = start_device(start, broker.url, parts, "pi-1")
    code, out, err = aggregator.end()
    assert code == 0, err
    assert [device.end()[0] for device in devices.values()] == [0, 0, 0]
    frames = []
    while True:
        try:
            event = tap.inbox.get(timeout=0.5)
        except queue.Empty:
            break
        if isinstance(event, Received):
            frames.append((event.topic, event.payload))
    tap.close()

    # What devices say names no private tensor, and holds none of its values, first or last.
    said = [payload for topic, payload in frames if "/up/" in topic or "/device/" in topic]
    offers = [m for m in (protocol.decode(payload)[0] for payload in said) if isinstance(m, protocol.Offer)]
    assert {(offer.device, offer.round) for offer in offers} == {(name, round) for name in MEMORY for round in range(6)}
    together = b"".join(said)
    assert b"small.head.weight" in together
    assert not any(name in together for name in PRIVATE)
    for name in MEMORY:
        seen.append(private_of(tmp_path, name))
    for private in seen:
        assert {name.partition(".")[0] for name in private} == {"local", "projector", "optimizer"}
        assert not any(value.tobytes() in together for value in private.values() if value.size > 4)

    # It lives on through the kills: it never went back to its start, and it differs from device to device.
    begin = bundles.read(dolls / "large.bundle").weights()
    kept = "projector.weight"
    assert len({value[kept].tobytes() for value in (begin, *seen[:3])}) == 4
    assert seen[3][kept].tobytes() != seen[4][kept].tobytes()
    moved = [float(np.abs(value[kept] - begin[kept]).sum()) for value in seen[:3]]
    assert moved == sorted(moved)

    # Devices report the accuracy of their own models; what is fused is the small model, and only that.
    result = json_of(out)
    run_dir = tmp_path / result["run_dir"]
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["accuracy"] > max(0.5, records[0]["accuracy"])
    weights = load_tensors((run_dir / "weights.safetensors").read_bytes(), "weights")
    assert weights and all(name.startswith("small.") for name in weights)
    assert not list(run_dir.rglob("model*.onnx"))
    lines = [json.loads(line) for line in (run_dir / "devices.jsonl").read_text().splitlines()]
    assert {line["device"]: line["class"] for line in lines} == {"pi-1": "large", "pi-2": "little", "pi-3": "little"}
    manifests = {name: list((tmp_path / ".edgefl" / name / "bundles").glob("*/manifest.json")) for name in MEMORY}
    names = {name: [json.loads(path.read_bytes())["name"] for path in paths] for name, paths in manifests.items()}
    assert names == {"pi-1": ["large"], "pi-2": ["little"], "pi-3": ["little"]}
    report = (run_dir / "report.html").read_text()
    assert ">large</th><td>memory_mb &gt;= 4000</td><td>1</td>" in report
    assert ">little</th><td>any</td><td>2</td>" in report

    # A device's own model is on the device, and becomes one file that is as good as the device said.
    (weights_file,) = (tmp_path / ".edgefl" / "pi-2").glob("*.safetensors")
    made = start("model", str(run_dir / "bundles" / "little"), str(weights_file), "-o", "pi-2.onnx", "--format", "json")
    code, out, err = made.end()
    assert code == 0, err
    about = json_of(out)
    assert about["from_bundle"] == [] and about["from_weights"] == 10
    test = read_splits(parts / "pi-2.npz").test
    assert test is not None
    session = onnxruntime.InferenceSession(tmp_path / "pi-2.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x"]
    logits, inner = session.run(["logits", "inner_logits"], {"x": test.features})
    assert np.mean(logits.argmax(axis=1) == test.labels) > 0.5
    assert inner.shape == logits.shape
    code, _, err = start("model", str(dolls / "large.bundle"), str(weights_file)).end()
    assert code == 3 and "'local.extractor.1.bias' is float32 [12]; expected float32 [24]" in err


def private_of(folder: Path, name: str) -> dict[str, np.ndarray]:
    """What a device keeps for itself."""
    (path,) = (folder / ".edgefl" / name).glob("*.journal")
    kept = Journal(path.parent, path.stem).read()
    assert kept is not None
    return dict(kept.private)


def test_a_profile_decides_which_bundle_an_emulated_device_gets(start: Start, dolls: Path, tmp_path: Path) -> None:
    fleet = '[fleet]\ndevices = 3\ndata = "digits"\npartition = "classes"\nper_device = 4\n'
    profiles = (
        "[[fleet.profile]]\nmemory_mb = 8000\nsettings = { inner_weight = 0.5 }\n[[fleet.profile]]\nmemory_mb = 100\n"
    )
    run_file = write_run_file(tmp_path, dolls, rounds=1, rest=fleet + profiles)
    code, out, err = start("run", str(run_file), "--format", "json").end()
    assert code == 0, err
    run_dir = tmp_path / json_of(out)["run_dir"]
    lines = [json.loads(line) for line in (run_dir / "devices.jsonl").read_text().splitlines()]
    classes = {line["device"]: line["class"] for line in lines}
    assert classes == {"device-1": "large", "device-2": "little", "device-3": "large"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            '[evaluate]\ndata = "digits"\n',
            "[evaluate]: only a device has its whole model: it keeps",
        ),
        (
            '[[bundle]]\npath = "{dolls}/large.bundle"\nname = "odd"\nsettings = {{ max_steps = 4 }}\n',
            "device class 'odd' sets 'max_steps', but no program of its bundle has such a setting",
        ),
        ('[[bundle]]\npath = "{dolls}/large.bundle"\n', "two [[bundle]] are called 'large'"),
        ('[[bundle]]\npath = "{dolls}/large.bundle"\nname = "x"\nfor = "ram > 1"\n', "cannot read 'ram > 1'"),
    ],
)
def test_a_run_file_that_cannot_be_is_refused_before_the_run(
    start: Start, dolls: Path, tmp_path: Path, changed: str, said: str
) -> None:
    run_file = write_run_file(tmp_path, dolls, rounds=1, rest=changed.format(dolls=dolls))
    code, _, err = start("aggregate", str(run_file), "--broker", "mqtt://127.0.0.1:1").end()
    assert code == 3, err
    assert said in err
    assert not list((tmp_path / "runs").glob("*"))
