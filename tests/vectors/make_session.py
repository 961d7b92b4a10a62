"""Write session.json: a device's whole life in one run, as frames in and frames out, for every language's session.

    python tests/vectors/make_session.py      with tests/support on PYTHONPATH

    run, device, data       whose session it is, and its training data, as in tasks.json
    chunk_bytes             what the connection takes in one part
    steps                   in order. `about` says what happens, for a person; `at_s` is when, in seconds; `does` is
        start         a process begins on what an earlier one left on the disk; `instance` is its name
        connect       a connection is made; `again` where this process had one before. `will`: what the broker is to say
                      when it is lost; `subscribes`: to what, before anything else
        disconnect    the connection is lost
        receive       a message comes: `topic`, `payload` (hexadecimal), `retained`
        work          the work that was wanted last is done, as in tasks.json
        tick          nothing but time

    `out` of a step is what the device then does, in order: {"publish": topic, "retain", "payload"},
    {"subscribe": topic}, {"unsubscribe": topic}, {"prepare": bundle}, {"perform": [round, nonce]}, {"cancel": true},
    {"done": true}. `message`, beside a payload, is its header, for reading.

The meaning counts: another language may order and space the fields of a header, and the tensors of a payload,
otherwise. Then `upload` and its size differ, too. Repetitions come at random times around those of docs/protocol.md;
the ticks here are long after.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from toy import write_regression

from edgefl import protocol
from edgefl.bundle import Bundle
from edgefl.method import Task
from edgefl.protocol import (
    AggregatorStatus,
    Announcement,
    Assignment,
    BlobChunk,
    BlobRef,
    ManifestRef,
    Message,
    Offer,
    Outgoing,
    Permit,
    Receipt,
)
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.wire.actions import Cancel, Done, Job, Perform, Prepare, Subscribe, Unsubscribe
from edgefl_device.wire.session import Session
from edgefl_device.work.interpreter import answer

PATH = Path(__file__).parent / "session.json"
RUN, DEVICE = "digits", "pi-1"
WIDTH = 300  # weights: 1.2 kB, two parts of 1024 bytes
CHUNK_BYTES = 1024
A_NONCE, B_NONCE, C_NONCE = "a" * 16, "b" * 16, "c" * 16
DATA = {"x": np.eye(2, WIDTH, dtype=np.float32), "y": np.array([1, 2], np.float32)}


class Device:
    """Does what steps say; reads nothing but them."""

    def __init__(self, folder: Path, run: str, device: str, data: Dataset, chunk_bytes: int) -> None:
        self._folder, self._run, self._name, self._data = folder, run, device, data
        self._chunk_bytes = chunk_bytes
        self._session: Session
        self._runtime: Runtime
        self._job: Job | None = None

    def do(self, step: dict[str, Any]) -> list[dict[str, Any]]:
        now_s = step["at_s"]
        match step["does"]:
            case "start":
                self._session = Session(self._run, self._name, self._folder, instance=step["instance"])
                self._session.chunk_bytes = self._chunk_bytes
                return []
            case "connect":
                will = self._session.will()
                said = [{"will": will.topic, "retain": will.retain, **_frame(will.payload)}]
                said += [{"subscribe": topic} for topic in self._session.subscriptions()]
                return said + self._tell(self._session.connected(now_s, again=step["again"]))
            case "disconnect":
                self._session.disconnected()
                return []
            case "receive":
                payload = bytes.fromhex(step["payload"])
                return self._tell(self._session.receive(step["topic"], payload, now_s, retained=step["retained"]))
            case "work":
                return self._tell(self._work(now_s))
            case "tick":
                return self._tell(self._session.tick(now_s))
        raise AssertionError(step)

    def _work(self, now_s: float) -> list[Any]:
        job = self._job
        assert job is not None
        feeds = {"train": fit_to_contract(self._data, self._runtime.manifest.data, "training data")}
        private, tasks = self._session.private, job.announcement.tasks
        done = answer(self._runtime, tasks, job.tensors, feeds, private, device=self._name, own=job.settings)
        return list(self._session.performed(job, done, now_s))

    def _tell(self, actions: list[Any]) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = []
        for action in actions:
            match action:
                case Outgoing(topic, payload, retain):
                    said.append({"publish": topic, "retain": retain, **_frame(payload)})
                case Subscribe(topic):
                    said.append({"subscribe": topic})
                case Unsubscribe(topic):
                    said.append({"unsubscribe": topic})
                case Prepare(bundle):
                    self._runtime = Runtime(bundle)
                    said.append({"prepare": bundle.sha256})
                case Perform(job):
                    self._job = job
                    said.append({"perform": list(job.key)})
                case Cancel():
                    said.append({"cancel": True})
                case Done():
                    said.append({"done": True})
                case _:
                    raise AssertionError(action)
        return said


def _frame(payload: bytes) -> dict[str, Any]:
    length = int.from_bytes(payload[8:12], "little")
    return {"message": msgspec.json.decode(payload[12 : 12 + length]), "payload": payload.hex()}


@dataclass
class Story:
    """Steps that are done as they are told."""

    device: Device
    steps: list[dict[str, Any]] = field(default_factory=list)

    def step(self, about: str, at_s: float, does: str, **more: Any) -> list[dict[str, Any]]:
        step = {"about": about, "at_s": at_s, "does": does, **more}
        out = self.device.do(step)
        self.steps.append(step | {"out": out})
        return out

    def hear(self, about: str, at_s: float, topic: str, payload: bytes, *, retained: bool = False) -> list[Any]:
        return self.step(about, at_s, "receive", topic=topic, retained=retained, **_frame(payload))

    def said(self, kind: type[Message]) -> Any:
        """The newest message of this kind that the device has published."""
        for step in reversed(self.steps):
            for out in step["out"]:
                if "publish" in out and out["message"]["type"] == kind.__struct_config__.tag:
                    return protocol.decode(bytes.fromhex(out["payload"]))[0]
        raise AssertionError(kind)


def tell(story: Story, bundle: Bundle) -> None:
    """The life of a device, told by hand; the topics are the aggregator's."""
    rounds, status = protocol.round_topic(RUN), protocol.aggregator_topic(RUN)
    down, own = protocol.down_topic(RUN, DEVICE), protocol.device_topic(RUN, DEVICE)
    step, hear = story.step, story.hear

    def frame(message: Message, body: bytes = b"") -> bytes:
        return protocol.encode(message, body)

    def announced(number: int, nonce: str, tensors: bytes, *, inside: bool, inline_bytes: int, epoch: int) -> bytes:
        task = Task("train", load=("w",), batch_size=0, settings={"learning_rate": 0.5}, send=("w",))
        ref = BlobRef(protocol.sha256_hex(tensors), len(tensors))
        before = ("", A_NONCE, B_NONCE)[number]
        message = Announcement(
            epoch, number, 0, nonce, 600.0, [DEVICE, "pi-2"], [task], ref, before=before, inline_bytes=inline_bytes
        )
        return frame(message, tensors if inside else b"")

    def chunk(data: bytes, size: int, index: int) -> tuple[str, bytes]:
        sha256 = protocol.sha256_hex(data)
        message = BlobChunk(sha256, len(data), size, index)
        return protocol.blob_topic(RUN, sha256), frame(message, data[index * size : (index + 1) * size])

    # The first round

    step("a first process, with an empty disk", 0.0, "start", instance="c0ffee-0000000001")
    up = step("it connects, and says that it is there", 0.0, "connect", again=False)
    hear("its own word comes back", 0.1, own, bytes.fromhex(up[-1]["payload"]))
    alive = frame(AggregatorStatus(3, "up"))
    hear("the broker has kept that an aggregator is up: a hint", 0.1, status, alive, retained=True)
    weights = bundle.bytes_of(bundle.manifest.weights)
    first = announced(0, A_NONCE, weights, inside=False, inline_bytes=512, epoch=3)
    hear("and an announcement, which nobody has confirmed", 0.1, rounds, first, retained=True)
    step("nobody answers: it says again that it is there", 3.5, "tick")
    manifest = bundle.manifest_bytes
    ref = ManifestRef(bundle.sha256, len(manifest))
    assignment = frame(Assignment(3, ref, {"momentum": 0.5}))
    hear("its assignment: the aggregator speaks, and it lacks the bundle", 3.6, down, assignment)
    for index in (0, 2):
        hear("a chunk of the manifest", 3.7, *chunk(manifest, 1024, index))
    step("chunk 1 was lost: it asks for what is missing", 9.0, "tick")
    hear("somebody else's request brings chunk 2 once more", 9.1, *chunk(manifest, 1024, 2))
    missing = [i for i in range(protocol.chunk_count(len(manifest), 1024)) if i not in (0, 2)]
    for index in missing:
        hear(
            "a chunk that was missing; with the last it knows which files it lacks", 9.1, *chunk(manifest, 1024, index)
        )
    files = {file.sha256: file for file in bundle.manifest.files(engine="portable")}
    for file in files.values():
        hear(f"{file.path}, in one chunk", 9.2, *chunk(bundle.bytes_of(file), protocol.CHUNK_BYTES, 0))
    hear("the announcement once more: it is at work already", 9.3, rounds, first)
    step("it has trained; its reply is too large to travel in the offer", 10.0, "work")
    step("nobody answers: it offers again", 15.0, "tick")
    offer: Offer = story.said(Offer)
    parts = protocol.chunk_count(offer.size_bytes, offer.chunk_bytes)
    hear("it may send its reply", 15.1, down, frame(Permit(offer.upload, [(0, parts)])))
    step("no receipt: a chunk was lost, so it offers again", 20.0, "tick")
    hear("one chunk is missing", 20.1, down, frame(Permit(offer.upload, [(1, 2)])))
    hear("a permit of somebody else's reply", 20.1, down, frame(Permit("f" * 64, [(0, 1)])))
    hear("a receipt", 20.2, down, frame(Receipt(offer.upload, 0, "accepted")))
    step("accepted: nothing to repeat", 90.0, "tick")

    # The second round, and a restart

    second_weights = protocol.tensors_to_bytes({"w": np.ones(WIDTH, np.float32)})
    second = announced(1, B_NONCE, second_weights, inside=True, inline_bytes=65024, epoch=3)
    hear("the second round, its tensors inside", 91.0, rounds, second)
    step("it has trained; the reply travels in its offer, after it is on disk", 92.0, "work")
    step("the process is killed; another begins", 93.0, "start", instance="c0ffee-0000000002")
    step("it connects", 93.0, "connect", again=False)
    hear(
        "what the first process said, kept by the broker, is no conflict",
        93.1,
        own,
        _last_presence(story),
        retained=True,
    )
    hear("the kept announcement", 93.1, rounds, second, retained=True)
    hear("the aggregator says that it is up", 93.2, status, alive)
    hear("its assignment: the bundle is on disk, and so is its reply", 93.3, down, assignment)
    offer = story.said(Offer)
    hear("which the aggregator has already", 93.4, down, frame(Receipt(offer.upload, 1, "duplicate")))

    # The aggregator restarts; the connection is lost; a task that is too new

    hear(
        "the aggregator was restarted: what it counted may be forgotten", 95.0, status, frame(AggregatorStatus(4, "up"))
    )
    hear("a word of the instance before it does not count", 95.1, status, alive)
    hear("it knows the reply, after all", 95.2, down, frame(Receipt(offer.upload, 1, "accepted")))
    step("the connection is lost", 96.0, "disconnect")
    step("and stands again", 97.0, "connect", again=True)
    newer = _with_a_field(announced(2, C_NONCE, second_weights, inside=True, inline_bytes=65024, epoch=4))
    hear("a task with a field that it does not know", 98.0, rounds, newer)
    hear("once more: it has said so", 98.1, rounds, newer)

    # The end

    over = frame(AggregatorStatus(4, "finished"))
    hear("somebody says to everybody that the run is finished: it asks", 99.0, status, over)
    hear("the aggregator says so to it alone", 99.1, down, over)


def _last_presence(story: Story) -> bytes:
    """What the first process said last."""
    told = [out for step in story.steps for out in step["out"] if out.get("message", {}).get("type") == "presence"]
    first = [out for out in told if "publish" in out and out["message"]["instance"].endswith("1")]
    return bytes.fromhex(first[-1]["payload"])


def _with_a_field(frame: bytes) -> bytes:
    """The same announcement with a field in its task that is of the future."""
    length = int.from_bytes(frame[8:12], "little")
    header = msgspec.json.decode(frame[12 : 12 + length])
    header["tasks"][0]["patience"] = 3
    rest = msgspec.json.encode(header)
    rest = len(rest).to_bytes(4, "little") + rest + frame[12 + length :]
    return frame[:4] + zlib.crc32(rest).to_bytes(4, "little") + rest


def tensor(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.reshape(-1).tolist()}


def vectors() -> dict[str, Any]:
    """What session.json holds."""
    with tempfile.TemporaryDirectory() as place:
        bundle = write_regression(Path(place) / "regression.bundle", WIDTH)
        device = Device(Path(place) / "state", RUN, DEVICE, Dataset(DATA["x"], DATA["y"]), CHUNK_BYTES)
        story = Story(device)
        tell(story, bundle)
    data = {name: tensor(array) for name, array in DATA.items()}
    return {"run": RUN, "device": DEVICE, "data": data, "chunk_bytes": CHUNK_BYTES, "steps": story.steps}


def text() -> str:
    """The file: one step a line."""
    made = vectors()
    about = json.dumps({name: value for name, value in made.items() if name != "steps"})
    return f'{about[:-1]}, "steps": [\n ' + ",\n ".join(map(json.dumps, made["steps"])) + "\n]}\n"


if __name__ == "__main__":
    PATH.write_text(text())
