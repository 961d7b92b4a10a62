"""What a fleet waits for and says: a broker that comes late, a run that nobody speaks for, packets that do not pass."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import DEVICES, Process, json_of
from relay import Relay

import edgefl_broker
from edgefl import protocol
from edgefl.address import Address
from edgefl.bundle import Bundle
from edgefl.errors import DataError
from edgefl.mqtt import Connection
from edgefl.protocol import AggregatorStatus, Assignment, Presence
from edgefl.transport import Received
from edgefl_broker import RunningBroker
from edgefl_device import taking_part
from edgefl_device.data.dataset import Dataset, Splits
from edgefl_device.options import Options
from edgefl_device.participate import participate
from edgefl_device.sources import read_splits

Start = Callable[..., Process]


def write_run_file(folder: Path, bundle: Path) -> Path:
    path = folder / "run.toml"
    path.write_text(
        f'name = "test"\nbundle = "{bundle}"\n[method]\nname = "fedavg"\nrounds = 2\nbatch_size = 16\n'
        "[round]\nmin_devices = 3\nquorum = 1.0\n"
    )
    return path


def device(start: Start, url: str, name: str, parts: Path, *more: str) -> Process:
    return start("device", "--broker", url, "--name", name, "--data", f"{parts / name}.npz", *more)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_a_broker_that_comes_late_is_waited_for(start: Start, digits_bundle: Path, parts: Path, tmp_path: Path) -> None:
    port = free_port()
    url = f"mqtt://127.0.0.1:{port}"
    everybody = [start("aggregate", str(write_run_file(tmp_path, digits_bundle)), "--broker", url, "--format", "json")]
    everybody += [device(start, url, name, parts) for name in DEVICES]
    for process in everybody:
        line = process.wait_for(lambda line: "trying again" in line)
        assert f"no broker answers at {url} (Connection refused): trying again (start one with" in line
    with edgefl_broker.start(port=port):
        ended = [process.end() for process in everybody]
    assert [code for code, _, _ in ended] == [0] * 4, ended
    assert json_of(ended[0][1])["rounds"] == 2


def test_who_wants_no_waiting_says_so(start: Start, digits_bundle: Path, parts: Path, tmp_path: Path) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    run_file = write_run_file(tmp_path, digits_bundle)
    both = [
        start("aggregate", str(run_file), "--broker", url, "--once"),
        device(start, url, "pi-1", parts, "--once"),
    ]
    for code, _, err in [process.end() for process in both]:
        assert code == 4 and f"error: no broker answers at {url} (Connection refused)" in err


def test_a_broker_that_hangs_up_on_large_packets_carries_a_run(
    start: Start, broker: RunningBroker, digits_bundle: Path, parts: Path, tmp_path: Path
) -> None:
    """As AWS IoT does at 128 KiB, and every broker of before MQTT 5: an announcement with the model does not pass. The
    aggregator finds that out and says to all how much may travel at a time, so no device has to."""
    size = (digits_bundle / "weights.safetensors").stat().st_size
    relay = Relay(broker.port, most_bytes=size * 3 // 4)
    url = f"mqtt://127.0.0.1:{relay.port}?protocol=3.1.1"
    run_file = write_run_file(tmp_path, digits_bundle)
    aggregator = start("aggregate", str(run_file), "--broker", url, "--format", "json")
    devices = [device(start, url, name, parts) for name in DEVICES]
    code, out, err = aggregator.end()
    assert code == 0, err
    assert json_of(out)["rounds"] == 2
    assert [process.end()[0] for process in devices] == [0, 0, 0]
    remembered = json.loads((tmp_path / json_of(out)["run_dir"] / "packet-limits.json").read_text())
    assert size // 2 <= remembered[f"mqtt://127.0.0.1:{relay.port}"] < size
    assert len(relay.refused) == 2 and all(packet > size for packet in relay.refused)
    relay.close()


def test_a_device_leaves_a_run_that_nobody_speaks_for_when_another_is_up(
    broker: RunningBroker, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut has left "up" of a dead run in the broker. The device waits there, until somebody speaks for another;
    that one ends at once, and a device for ever goes on to a third."""
    monkeypatch.setattr(taking_part, "UNHEARD_S", 0.3)
    address = Address.parse(broker.url)
    speaker = Connection(address, "speaker")
    speaker.subscribe(protocol.device_topic("+", "pi-1"))
    speaker.connect()
    splits = read_splits(parts / "pi-1.npz")
    lines: list[str] = []
    waits = threading.Event()

    def log(line: str) -> None:
        lines.append(line)
        if "nothing is heard" in line:
            waits.set()
        if "bundle" in line or "third" in line:
            raise KeyboardInterrupt

    def say(run: str, status: str) -> None:
        message = protocol.encode(AggregatorStatus(1, status))  # type: ignore[arg-type]
        speaker.publish(protocol.aggregator_topic(run), message, retain=True)

    def speak() -> None:
        assert waits.wait(20)
        say("living", "up")
        while True:
            event = speaker.inbox.get(timeout=20)
            if not isinstance(event, Received):
                continue
            presence, run = protocol.decode(event.payload)[0], protocol.run_of(event.topic)
            if not isinstance(presence, Presence) or presence.status != "up":
                continue
            if run == "living":
                down = protocol.down_topic(run, "pi-1")
                speaker.publish(down, protocol.encode(Assignment(1, None, reason="for you there is none")))
                say("living", "finished")
                speaker.publish(down, protocol.encode(AggregatorStatus(1, "finished")))
                say("third", "up")
                return

    say("dead", "up")
    assert speaker.flush()
    speaking = threading.Thread(target=speak)
    speaking.start()
    with pytest.raises(KeyboardInterrupt):
        participate(Options(address, "pi-1", splits, tmp_path / "state", forever=True), log)
    speaking.join()
    speaker.close()
    where = f"connected to {address}; waiting for the aggregator of run"
    assert lines == [
        f"{where} dead",
        "waiting for run dead: nothing is heard of its aggregator",
        f"{where} living",
        "waiting: for you there is none",
        "the run is finished",
        f"{where} third",
    ]


def test_a_device_leaves_a_run_that_it_has_heard_only_after_its_patience(
    broker: RunningBroker, parts: Path, tmp_path: Path
) -> None:
    """Both say that they are up; then one is silent. The device stays as long as its patience is."""
    address = Address.parse(broker.url)
    speaker = Connection(address, "speaker")
    speaker.subscribe(protocol.device_topic("+", "pi-1"))
    speaker.connect()
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if line.endswith("of run second"):
            raise KeyboardInterrupt

    def say(run: str) -> None:
        up = protocol.encode(AggregatorStatus(1, "up"))
        speaker.publish(protocol.aggregator_topic(run), up, retain=True)
        assert speaker.flush()

    def speak() -> None:
        while not isinstance(speaker.inbox.get(timeout=20), Received):
            pass  # until the device is there: what is said from now on is heard
        say("first")
        say("second")

    say("first")
    speaking = threading.Thread(target=speak)
    speaking.start()
    options = Options(address, "pi-1", read_splits(parts / "pi-1.npz"), tmp_path / "state", patience_s=1.0)
    begun_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        participate(options, log)
    assert 1.0 < time.monotonic() - begun_s < taking_part.UNHEARD_S
    speaking.join()
    speaker.close()
    where = f"connected to {address}; waiting for the aggregator of run"
    assert lines == [f"{where} first", f"{where} second"]


def test_a_device_for_ever_passes_over_a_run_that_does_not_suit_it(
    start: Start, broker: RunningBroker, regression: Bundle, tmp_path: Path
) -> None:
    """Its examples have three features, the run's two: an error; for ever, a word, and it waits for another run."""
    (tmp_path / "run.toml").write_text(f'name = "two"\nbundle = "{regression.path}"\n')
    aggregator = start("aggregate", "run.toml", "--broker", broker.url)
    aggregator.wait_for(lambda line: "run two" in line)
    data = Splits(Dataset(np.ones((2, 3), np.float32), np.ones(2, np.float32)), None)
    options = Options(Address.parse(broker.url), "pi-1", data, tmp_path / "state")
    with pytest.raises(DataError) as unfit:
        participate(options, lambda line: None)
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if line.endswith("waiting for an aggregator"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        participate(replace(options, forever=True), log)
    (run,) = (path.name for path in (tmp_path / "runs").glob("two-*"))
    assert f"run {run}: {unfit.value.message}; waiting for another run" in lines
