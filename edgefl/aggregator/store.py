"""A run on disk: what was durable when.

    runs/digits-20260102-030405/
        run.toml              the resolved run file
        about.json            when the run was asked for, with which versions, on what machine (edgefl/runs/about.py)
        run.json              how often the aggregator started (its epoch), the secret of its nonces
        bundles/CLASS/        the bundle that devices of a class download
        devices.jsonl         which class each device has, and how many examples it says it has
        weights.py            where the run has a weight rule of its own, its file
        state.safetensors     the method's state after the last durable round, with that round's record
        open.json             the round that is announced, if one is
        metrics.jsonl         one record per round (edgefl/aggregator/record.py)
        devices.json          what the devices state, and what was seen of them, for people (edgefl/aggregator/fleet.py)
        events.jsonl          what happened, for a person
        weights.safetensors   the fused weights at the end
        model.onnx            an inference model with these weights
        report.html           for a person: edgefl/results/report.py
        summary.json          what it came to, and its curves: edgefl/results/summary.py

A round is durable when `save_round` returns, unless its ask said that it need not be. What such rounds have left here
after the last durable one is removed when the run goes on.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgefl.aggregator.classes import Examples
from edgefl.aggregator.fleet import Known
from edgefl.aggregator.record import Count, Record
from edgefl.aggregator.rounds import Announce, Note, OpenRound
from edgefl.errors import ConfigError, InputError
from edgefl.files import Kind, from_json, make_folder, read_bytes, sweep, sync_directory, write_atomic, writing
from edgefl.method import State
from edgefl.protocol import MAX_DEVICES, NAME, Stock
from edgefl.tensors import load_about, load_tensors, save_tensors

# What is written here, for `sweep`. Not below devices/: an emulated device sweeps its own folder, and may still end.
WRITTEN = (
    *("run.toml", "*.json", "*.jsonl", "weights.py", "*.safetensors", "*.onnx", "report.html"),
    *("models/*.onnx", "pictures/*.png", "data/*.npz", "bundles/*/", "student/"),
)
MAX_JSON_BYTES = 2**20  # of run.json and open.json: 10,000 devices have 400 KB of names

FLEET = "devices.json"
MAX_FLEET_BYTES = 64 * 2**20

Number = int | float  # as it was written: a resumed run ends with the files of one that was never stopped


class _Run(msgspec.Struct, frozen=True):
    """run.json"""

    epoch: Count
    secret: Annotated[str, Meta(min_length=1, max_length=200)]


Names = Annotated[list[Annotated[str, Meta(pattern=NAME)]], Meta(max_length=MAX_DEVICES)]


class _Open(msgspec.Struct, frozen=True):
    """open.json"""

    round: Count
    attempt: Count
    devices: Names
    quorum: Count
    weight_limit: Number = 0.0
    trial: Names = []


class _About(msgspec.Struct, frozen=True):
    """What stands in state.safetensors beside its tensors."""

    round: Count
    numbers: dict[str, Number]
    record: Record


class _Fleet(msgspec.Struct, frozen=True):
    """devices.json"""

    devices: dict[str, Known]


class _Device(msgspec.Struct, frozen=True):
    """A line of devices.jsonl."""

    device: Annotated[str, Meta(pattern=NAME)]
    name: str = msgspec.field(name="class")
    train_examples: Stock = 0
    test_examples: Stock = 0


class Store:
    """One run directory. `create` or `open` it."""

    def __init__(self, path: Path, epoch: int, secret: str) -> None:
        self.path = path
        self.epoch = epoch
        self.secret = secret
        self._events = open(path / "events.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - open for the run

    @classmethod
    def create(cls, path: Path, config: str) -> Store:
        """A new run directory. Raises ConfigError when there is one already."""
        if (path / "run.json").exists():
            raise ConfigError(f"{path} holds a run already", hint="go on with --resume, or choose another name")
        make_folder(path)
        write_atomic(path / "run.toml", config.encode())
        return cls._begin(path, epoch=1, secret=secrets.token_hex(16))

    @classmethod
    def open(cls, path: Path) -> Store:
        """Go on with a run. Raises ConfigError when there is none, or its files are damaged."""
        about = path / "run.json"
        if not about.exists():
            raise ConfigError(f"no run at {path}: run.json is missing", hint="start one without --resume")
        with _damage(about):
            saved = from_json(read_bytes(about, MAX_JSON_BYTES), _Run)
        store = cls._begin(path, saved.epoch + 1, saved.secret)
        try:
            store._repair_lines("devices.jsonl")
            store._repair_metrics()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _begin(cls, path: Path, epoch: int, secret: str) -> Store:
        sweep(path, WRITTEN)
        write_atomic(path / "run.json", json.dumps({"epoch": epoch, "secret": secret}).encode())
        return cls(path, epoch, secret)

    # --- the method's state -----------------------------------------------------------------------------------

    def save_round(self, state: State, record: Record) -> None:
        """Make a round durable: its state first, then its record. Where it need not be, its record is noted only."""
        if record.durable:
            about = {"round": state.round, "numbers": dict(state.numbers), "record": record}
            write_atomic(self.path / "state.safetensors", save_tensors(state.tensors, {"about": json_line(about)}))
        self._append("metrics.jsonl", record, durable=record.durable)

    def load_state(self) -> State | None:
        """The state after the last durable round; None before the first."""
        about = self._about()
        if about is None:
            return None
        path = self.path / "state.safetensors"
        with _damage(path):
            return State(about.round, load_tensors(read_bytes(path), path), about.numbers)

    def records(self) -> list[Record]:
        """One record per round."""
        return read_records(self.path / "metrics.jsonl")

    def _about(self) -> _About | None:
        path = self.path / "state.safetensors"
        if not path.exists():
            return None
        with _damage(path):
            return load_about(read_bytes(path), "about", _About)

    def _repair_metrics(self) -> None:
        """After a crash: a last line that is cut, rounds after the last durable one, or that one's record missing.

        Rounds before it that were not durable may have lost theirs in a power cut.
        """
        self._repair_lines("metrics.jsonl")
        about = self._about()
        records = self.records()
        last = about.round if about is not None else 0
        kept = [record for record in records if record.round <= last]
        if about is not None and (not kept or kept[-1].round != last):
            kept.append(about.record)
        if kept != records:
            write_atomic(self.path / "metrics.jsonl", "".join(map(json_line, kept)).encode())

    # --- devices ----------------------------------------------------------------------------------------------

    def save_device(self, device: str, name: str, examples: Examples) -> None:
        """Remember which class a device has, durably: its private state fits no other. And what it states, for a reply
        may come before it says so again."""
        about = {"train_examples": examples.train, "test_examples": examples.test}
        self._append("devices.jsonl", {"device": device, "class": name, **about})

    def classes(self) -> dict[str, str]:
        """The class of each device that ever joined."""
        return read_classes(self.path)

    def examples(self) -> dict[str, Examples]:
        """What each device stated last."""
        return read_examples(self.path)

    def save_fleet(self, known: Mapping[str, Known]) -> None:
        """Write down what is known of each device."""
        write_atomic(self.path / FLEET, msgspec.json.encode(_Fleet(dict(known))))

    def fleet(self) -> dict[str, Known]:
        """What was known of each device when it was last written down; nothing where that cannot be read: nothing
        depends on it."""
        return read_fleet(self.path)

    # --- files of lines ---------------------------------------------------------------------------------------

    def _append(self, name: str, line: object, *, durable: bool = True) -> None:
        path = self.path / name
        new = not path.exists()
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json_line(line))
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if durable and new:
            sync_directory(self.path)

    def _repair_lines(self, name: str) -> None:
        """Remove a last line that a crash has cut."""
        path = self.path / name
        data = read_bytes(path, error=ConfigError) if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            write_atomic(path, whole)

    # --- rounds and events ------------------------------------------------------------------------------------

    def save_open_round(self, announce: Announce) -> None:
        """Remember who is asked, so that a resume asks the same devices. A round that no resume opens is noted only."""
        about = {
            "round": announce.round,
            "attempt": announce.attempt,
            "devices": list(announce.devices),
            "quorum": announce.quorum,
            "weight_limit": announce.weight_limit,
            "trial": list(announce.trial),
        }
        if announce.durable:
            write_atomic(self.path / "open.json", json.dumps(about).encode())
        self.event("announced", **about | {"round": announce.round + 1})

    def open_round(self) -> OpenRound | None:
        """The round that was announced last."""
        path = self.path / "open.json"
        if not path.exists():
            return None
        with _damage(path):
            about = from_json(read_bytes(path, MAX_JSON_BYTES), _Open)
        return OpenRound(
            about.round,
            about.attempt,
            tuple(about.devices),
            about.quorum,
            about.weight_limit,
            tuple(about.trial),
        )

    def note(self, note: Note) -> None:
        self.event(note.event, round=note.round + 1, device=note.device, text=note.text)

    def event(self, event: str, **about: object) -> None:
        """Append to events.jsonl. Not fsynced: nothing depends on it."""
        line = {"time": round(time.time(), 3), "event": event} | {k: v for k, v in about.items() if v != ""}
        with writing(self.path / "events.jsonl"):
            self._events.write(json.dumps(line) + "\n")
            self._events.flush()

    def close(self) -> None:
        with writing(self.path / "events.jsonl"):
            self._events.close()


def read_records(path: Path) -> list[Record]:
    """A run's metrics.jsonl: a record for each round; none where it is not there.

    Raises ConfigError where it is damaged.
    """
    return _lines(path, Record)


def read_classes(run_dir: Path) -> dict[str, str]:
    """A run's devices.jsonl: the class of each device. Raises ConfigError where it is damaged."""
    return {line.device: line.name for line in _lines(run_dir / "devices.jsonl", _Device)}


def read_examples(run_dir: Path) -> dict[str, Examples]:
    """What each device stated last, of devices.jsonl. Raises ConfigError where it is damaged."""
    lines = _lines(run_dir / "devices.jsonl", _Device)
    return {line.device: Examples(line.train_examples, line.test_examples) for line in lines}


def read_fleet(run_dir: Path) -> dict[str, Known]:
    """A run's devices.json; {} where there is none that can be read."""
    try:
        return from_json(read_bytes(run_dir / FLEET, MAX_FLEET_BYTES), _Fleet).devices
    except (InputError, ValueError):
        return {}


def _lines(path: Path, kind: type[Kind]) -> list[Kind]:
    if not path.exists():
        return []
    with _damage(path):
        return [from_json(line, kind) for line in read_bytes(path).splitlines()]


def json_line(value: object) -> str:
    """One line of JSON, which has no word for what is not finite: null stands there."""
    return json.dumps(_finite(msgspec.to_builtins(value)), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What cannot be read in the block becomes a ConfigError that names the file."""
    try:
        yield
    except (ValueError, InputError) as error:
        raise ConfigError(f"{path} is damaged: {error}", hint="restore it from a copy, or start a new run") from error
