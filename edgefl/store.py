"""A run on disk: what was durable when.

    runs/digits-20260102-030405/
        run.toml              the resolved run file
        run.json              how often the aggregator started (its epoch), the secret of its nonces
        bundles/CLASS/        the bundle that devices of a class download
        devices.jsonl         which class each device has
        weights.py            where the run has a weight rule of its own, its file
        state.safetensors     the method's state after the last durable round, with that round's record
        open.json             the round that is announced, if one is
        metrics.jsonl         one record per round
        events.jsonl          what happened, for a person
        weights.safetensors   the fused weights at the end
        model.onnx            an inference model with these weights
        report.html           curves and tables

A round is durable when `save_round` returns, unless its ask said that it need not be. What such rounds have left here
after the last durable one is removed when the run goes on.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgefl.coordinator import Announce, Note, OpenRound
from edgefl.errors import ConfigError
from edgefl.files import write_atomic
from edgefl.method import State
from edgefl.tensors import load_metadata, load_tensors, save_tensors

Record = dict[str, Any]


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
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "run.toml", config.encode())
        return cls._begin(path, epoch=1, secret=secrets.token_hex(16))

    @classmethod
    def open(cls, path: Path) -> Store:
        """Go on with a run. Raises ConfigError when there is none, or its files are damaged."""
        about = path / "run.json"
        if not about.exists():
            raise ConfigError(f"no run at {path}: run.json is missing", hint="start one without --resume")
        with _damage(about):
            saved = json.loads(about.read_bytes())
            epoch, secret = int(saved["epoch"]) + 1, str(saved["secret"])
        store = cls._begin(path, epoch, secret)
        try:
            store._repair_lines("devices.jsonl")
            store._repair_metrics()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _begin(cls, path: Path, epoch: int, secret: str) -> Store:
        write_atomic(path / "run.json", json.dumps({"epoch": epoch, "secret": secret}).encode())
        return cls(path, epoch, secret)

    # --- the method's state -----------------------------------------------------------------------------------

    def save_round(self, state: State, record: Record, *, durable: bool = True) -> None:
        """Make a round durable: its state first, then its record. Where it need not be, its record is noted only."""
        if not durable:
            self._append("metrics.jsonl", record, durable=False)
            return
        about = {"round": state.round, "numbers": dict(state.numbers), "record": record}
        write_atomic(self.path / "state.safetensors", save_tensors(state.tensors, {"about": json.dumps(about)}))
        self._append("metrics.jsonl", record)

    def load_state(self) -> State | None:
        """The state after the last durable round; None before the first."""
        about = self._about()
        if about is None:
            return None
        path = self.path / "state.safetensors"
        return State(about["round"], load_tensors(path.read_bytes(), path), about["numbers"])

    def records(self) -> list[Record]:
        """One record per round."""
        return self._lines("metrics.jsonl")

    def _about(self) -> dict[str, Any] | None:
        path = self.path / "state.safetensors"
        if not path.exists():
            return None
        with _damage(path):
            about: dict[str, Any] = json.loads(load_metadata(path.read_bytes())["about"])
        return about

    def _repair_metrics(self) -> None:
        """After a crash: a last line that is cut, rounds after the last durable one, or that one's record missing.

        Rounds before it that were not durable may have lost theirs in a power cut.
        """
        self._repair_lines("metrics.jsonl")
        about = self._about()
        records = self.records()
        last = about["round"] if about is not None else 0
        kept = [record for record in records if record["round"] <= last]
        if about is not None and (not kept or kept[-1]["round"] != last):
            kept.append(about["record"])
        if kept != records:
            write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept).encode())

    # --- devices ----------------------------------------------------------------------------------------------

    def save_class(self, device: str, name: str) -> None:
        """Remember which class a device has, durably: its private state fits no other."""
        self._append("devices.jsonl", {"device": device, "class": name})

    def classes(self) -> dict[str, str]:
        """The class of each device that ever joined."""
        return {line["device"]: line["class"] for line in self._lines("devices.jsonl")}

    # --- files of lines ---------------------------------------------------------------------------------------

    def _append(self, name: str, record: Record, *, durable: bool = True) -> None:
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            if durable:
                os.fsync(file.fileno())

    def _lines(self, name: str) -> list[Record]:
        return read_records(self.path / name)

    def _repair_lines(self, name: str) -> None:
        """Remove a last line that a crash has cut."""
        path = self.path / name
        with _damage(path):
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_atomic(path, whole.encode())

    # --- rounds and events ------------------------------------------------------------------------------------

    def save_open_round(self, announce: Announce) -> None:
        """Remember who is asked, so that a resume asks the same devices. A round that no resume opens is noted only."""
        about = {
            "round": announce.round,
            "attempt": announce.attempt,
            "devices": list(announce.devices),
            "quorum": announce.quorum,
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
            about = json.loads(path.read_bytes())
            return OpenRound(about["round"], about["attempt"], tuple(about["devices"]), about["quorum"])

    def note(self, note: Note) -> None:
        self.event(note.event, round=note.round + 1, device=note.device, text=note.text)

    def event(self, event: str, **about: object) -> None:
        """Append to events.jsonl. Not fsynced: nothing depends on it."""
        line = {"time": round(time.time(), 3), "event": event} | {k: v for k, v in about.items() if v != ""}
        self._events.write(json.dumps(line) + "\n")
        self._events.flush()

    def close(self) -> None:
        self._events.close()


def read_records(path: Path) -> list[Record]:
    """The lines of one of a run's .jsonl files; none where it is not there. Raises ConfigError where it is damaged."""
    if not path.exists():
        return []
    with _damage(path):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What cannot be read in the block becomes a ConfigError that names the file."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {error}", hint="restore it from a copy, or start a new run") from error
