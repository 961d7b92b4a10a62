"""Sieges of real processes: what a run may cost in memory beside what it costs when nobody is hostile.

Each lasts EDGEFL_SIEGE_S seconds: 1, and 60 in `make soak`. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from processes import Process
from toy import write_regression

import edgefl_broker
from edgefl import protocol
from edgefl.address import Address
from edgefl.bundle import Bundle
from edgefl.manifest import MAX_MANIFEST_BYTES
from edgefl.mqtt import Connection
from edgefl.protocol import Announcement, Assignment, BlobChunk, BlobRequest, ManifestRef, Offer, Presence, UploadChunk
from edgefl.transport import Received

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

SIEGE_S = float(os.environ.get("EDGEFL_SIEGE_S", "1"))
WIDTH = 1_300_000  # weights of 5.2 MB
MADE_UP = [f"made-up-{i}" for i in range(200)]
AGGREGATOR_MB = BROKER_MB = 150
DEVICE_MB = 100

RUN_FILE = """
name = "siege"
bundle = "{bundle}"
[method]
name = "fedavg"
rounds = 100000
learning_rate = 0.001
batch_size = 0
[round]
min_devices = {devices}
quorum = {quorum}
deadline_s = 1.0
"""


class Siege:
    """A run with one honest device, and a connection to its broker for whoever is hostile."""

    def __init__(self, folder: Path, bundle: Bundle, made_up: list[str], stack: ExitStack) -> None:
        self.broker = edgefl_broker.start()
        stack.callback(self.broker.stop)
        self.hostile = Connection(Address.parse(self.broker.url), "hostile")
        self.hostile.connect()
        stack.callback(self.hostile.close)
        devices = 1 + len(made_up)
        (folder / "run.toml").write_text(RUN_FILE.format(bundle=bundle.path, devices=devices, quorum=0.5 / devices))
        x = np.random.default_rng(1).normal(size=(1, WIDTH)).astype(np.float32)
        np.savez(folder / "data.npz", x=x, y=np.ones(1, np.float32))
        self.aggregator = Process(folder, "aggregate", "run.toml", "--broker", self.broker.url)
        stack.callback(end, self.aggregator)
        self.aggregator.wait_for(lambda line: " run " in line)
        self.run = next((folder / "runs").glob("siege-*")).name
        for name in made_up:
            self.say(protocol.device_topic(self.run, name), Presence(name, 1, "up", name, train_examples=1))
        self.hostile.subscribe(protocol.round_topic(self.run))
        options = ("--broker", self.broker.url, "--name", "pi-1", "--data", "data.npz", "--run", self.run)
        self.device = Process(folder, "device", *options)
        stack.callback(end, self.device)
        self.announcement = self.wait_for_announcement()

    def say(self, topic: str, message: protocol.Message, body: bytes = b"") -> None:
        self.hostile.publish(topic, protocol.encode(message, body), retain=isinstance(message, Presence))

    def wait_for_announcement(self) -> Announcement:
        """The next, and nothing that was announced before."""
        while True:
            event = self.hostile.inbox.get(timeout=60)
            if isinstance(event, Received):
                message, _ = protocol.decode(event.payload)
                if isinstance(message, Announcement):
                    return message

    @property
    def pids(self) -> dict[str, int]:
        broker = self.broker.process.pid
        return {"aggregator": self.aggregator.child.pid, "device": self.device.child.pid, "broker": broker}


def end(process: Process) -> None:
    process.child.kill()
    process.child.communicate()


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_regression(tmp_path_factory.mktemp("bundles") / "five-megabytes.bundle", WIDTH)


@pytest.fixture
def siege(request: pytest.FixtureRequest, tmp_path: Path, wide: Bundle) -> Iterator[Siege]:
    with ExitStack() as stack:
        yield Siege(tmp_path, wide, request.param, stack)


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def honest_mb(siege: Siege) -> dict[str, float]:
    """The peak of each process in an ordinary round; what comes from now on is measured anew."""
    siege.wait_for_announcement()
    siege.wait_for_announcement()
    found = {name: peak_mb(pid) for name, pid in siege.pids.items()}
    for pid in siege.pids.values():
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return found


def assert_bounded(siege: Siege, before: dict[str, float]) -> None:
    """And the run goes on."""
    siege.wait_for_announcement()
    siege.wait_for_announcement()
    after = {name: peak_mb(pid) for name, pid in siege.pids.items()}
    limits = {"aggregator": AGGREGATOR_MB, "broker": BROKER_MB, "device": DEVICE_MB}
    grown = {name: after[name] - before[name] for name in after}
    print(", ".join(f"{name} {before[name]:.0f} -> {after[name]:.0f} MB" for name in after))
    assert all(grown[name] <= limits[name] for name in grown), grown


def turns(per_second: float) -> Iterator[None]:
    """At so many a second, for as long as the siege lasts."""
    begin_s = time.monotonic()
    done = 0
    while (now_s := time.monotonic()) < begin_s + SIEGE_S:
        if done < (now_s - begin_s) * per_second:
            done += 1
            yield
        else:
            time.sleep(0.5 / per_second)  # the pace is the attack's, nothing waits for it


@pytest.mark.parametrize("siege", [MADE_UP], indirect=True, ids=["200 made-up devices"])
def test_chunks_that_nobody_permitted(siege: Siege) -> None:
    before = honest_mb(siege)
    size, sha256 = 4 * WIDTH + 100, "a" * 64
    for _ in turns(per_second=2):
        for name in MADE_UP:
            up = protocol.up_topic(siege.run, name)
            nonce, number = siege.announcement.nonce, siege.announcement.round
            siege.say(up, Offer(name, number, nonce, sha256, size, 1024, 1, {}))
            siege.say(up, UploadChunk(sha256, 7), bytes(1024))
        siege.announcement = siege.wait_for_announcement()
    assert_bounded(siege, before)


@pytest.mark.parametrize("siege", [["made-up-1"]], indirect=True, ids=["one made-up device"])
def test_requests_for_a_blob_at_130_a_second(siege: Siege, wide: Bundle) -> None:
    before = honest_mb(siege)
    up = protocol.up_topic(siege.run, "made-up-1")
    for _ in turns(per_second=130):
        siege.say(up, BlobRequest(wide.manifest.weights.sha256, []))
    assert_bounded(siege, before)


@pytest.mark.parametrize("siege", [[]], indirect=True, ids=["one honest device"])
def test_a_manifest_of_which_one_chunk_comes(siege: Siege) -> None:
    before = honest_mb(siege)
    down = protocol.down_topic(siege.run, "pi-1")
    for turn, _ in enumerate(turns(per_second=20)):
        sha256 = f"{turn:064x}"
        for size in (MAX_MANIFEST_BYTES, protocol.MAX_BLOB_BYTES):
            siege.say(down, Assignment(1, ManifestRef(sha256, size)))
            siege.say(protocol.blob_topic(siege.run, sha256), BlobChunk(sha256, size, 1024, 7), bytes(1024))
    # Somebody says that the device is there, so that the aggregator tells it its bundle again.
    siege.say(protocol.device_topic(siege.run, "pi-1"), Presence("pi-1", 1, "up", "", train_examples=1))
    assert_bounded(siege, before)
