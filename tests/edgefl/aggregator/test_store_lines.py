"""What a run directory says, to a person and to the next start: its lines, its hints, and what it takes for damage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgefl.aggregator.classes import Examples
from edgefl.aggregator.record import Record
from edgefl.aggregator.rounds import Announce, Note, OpenRound
from edgefl.aggregator.store import MAX_JSON_BYTES, Store, read_classes, read_records
from edgefl.errors import ConfigError
from edgefl.method import Ask, State


def record(round: int, *, durable: bool = True, loss: float | None = 0.5) -> Record:
    return Record(
        round=round,
        replies=1,
        asked=1,
        attempts=1,
        examples=5,
        bytes_up=1,
        bytes_down=1,
        bytes_up_by_device={"pi-1": 1},
        seconds=1.0,
        elapsed_s=1.0 * round,
        devices=["pi-1"],
        weights={"pi-1": 1.0},
        metrics={"train.loss": loss},
        durable=durable,
    )


def state(round: int) -> State:
    return State(round, {"w": np.full(2, round, np.float32)}, {"residual": 0.5})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.create(tmp_path / "run", "name = 1\n")
    yield store
    store.close()


def refused(call: Callable[[], object]) -> tuple[str, str | None]:
    with pytest.raises(ConfigError) as caught:
        call()
    return caught.value.message, caught.value.hint


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_run_that_is_there_or_is_not_there(store: Store, tmp_path: Path) -> None:
    assert refused(lambda: Store.create(store.path, "other")) == (
        f"{store.path} holds a run already",
        "go on with --resume, or choose another name",
    )
    assert refused(lambda: Store.open(tmp_path / "none")) == (
        f"no run at {tmp_path / 'none'}: run.json is missing",
        "start one without --resume",
    )


@pytest.mark.parametrize("file", ["run.json", "open.json", "state.safetensors", "metrics.jsonl", "devices.jsonl"])
def test_damage_is_said_with_the_file_and_a_way_out(store: Store, file: str) -> None:
    store.save_round(state(1), record(1))
    store.save_device("pi-1", "all", Examples(5, 2))
    store.save_open_round(Announce(1, 0, "0" * 16, Ask((), {}), ("pi-1",), 60.0))
    (store.path / file).write_bytes(b"nonsense\n")

    def read() -> None:
        again = Store.open(store.path)
        try:
            again.open_round()
            again.classes()
        finally:
            again.close()

    message, hint = refused(read)
    assert message.startswith(f"{store.path / file} is damaged: ")
    assert hint == "restore it from a copy, or start a new run"


@pytest.mark.parametrize("file", ["run.json", "open.json"])
def test_json_that_is_too_large_is_not_read(store: Store, file: str) -> None:
    (store.path / file).write_bytes(b" " * MAX_JSON_BYTES + b"{}")

    def read() -> None:
        again = Store.open(store.path)
        try:
            again.open_round()
        finally:
            again.close()

    message, _ = refused(read)
    assert f"has {MAX_JSON_BYTES + 2} bytes; expected at most {MAX_JSON_BYTES}" in message


# --- what is written ----------------------------------------------------------------------------------------------


def test_a_round_that_need_not_be_durable_leaves_a_record_and_no_state(store: Store) -> None:
    store.save_round(state(1), record(1))
    store.save_round(state(2), record(2, durable=False))
    assert [r.round for r in store.records()] == [1, 2]
    found = store.load_state()
    assert found is not None and found.round == 1 and found.numbers == {"residual": 0.5}
    again = Store.open(store.path)
    assert [r.round for r in again.records()] == [1]  # the second begins anew
    again.close()


def test_a_number_that_is_not_finite_is_null(store: Store) -> None:
    store.save_round(state(1), record(1, loss=float("nan")))
    (line,) = lines(store.path / "metrics.jsonl")
    assert line["metrics"] == {"train.loss": None}
    assert read_records(store.path / "metrics.jsonl")[0].metrics == {"train.loss": None}
    assert read_records(store.path / "none.jsonl") == []


def test_a_record_that_was_lost_comes_back_with_the_state(store: Store) -> None:
    store.save_round(state(1), record(1))
    store.save_round(state(2), record(2))
    (store.path / "metrics.jsonl").unlink()
    again = Store.open(store.path)
    assert [r.round for r in again.records()] == [2]
    again.close()


def test_a_run_that_is_whole_is_opened_without_a_change(store: Store) -> None:
    store.save_round(state(1), record(1))
    store.save_device("pi-1", "all", Examples(5, 2))
    files = {name: (store.path / name).stat().st_mtime_ns for name in ("metrics.jsonl", "devices.jsonl", "run.toml")}
    again = Store.open(store.path)
    again.close()
    assert files == {name: (store.path / name).stat().st_mtime_ns for name in files}


def test_what_a_device_stated_last_counts_and_its_class_is_kept(store: Store) -> None:
    store.save_device("pi-1", "small", Examples(5, 2))
    store.save_device("pi-2", "all", Examples(0, 0))
    store.save_device("pi-1", "small", Examples(7, 3))
    assert store.classes() == read_classes(store.path) == {"pi-1": "small", "pi-2": "all"}
    assert store.examples() == {"pi-1": Examples(7, 3), "pi-2": Examples(0, 0)}
    assert lines(store.path / "devices.jsonl")[0] == {
        "device": "pi-1",
        "class": "small",
        "train_examples": 5,
        "test_examples": 2,
    }
    whole = (store.path / "devices.jsonl").read_bytes()
    (store.path / "devices.jsonl").write_bytes(whole + b'{"device": "pi-3"')  # cut by a kill
    again = Store.open(store.path)
    assert again.classes().keys() == {"pi-1", "pi-2"}
    again.close()


def test_the_open_round_is_read_back_whole(store: Store) -> None:
    announced = Announce(3, 1, "0" * 16, Ask((), {}), ("pi-1", "pi-2"), 60.0, quorum=2, weight_limit=2.5)
    store.save_open_round(announced)
    assert store.open_round() == OpenRound(3, 1, ("pi-1", "pi-2"), 2, 2.5)
    (event,) = lines(store.path / "events.jsonl")
    assert {name: event[name] for name in ("event", "round", "attempt", "devices", "quorum", "weight_limit")} == {
        "event": "announced",
        "round": 4,  # people count from 1
        "attempt": 1,
        "devices": ["pi-1", "pi-2"],
        "quorum": 2,
        "weight_limit": 2.5,
    }


def test_an_event_is_there_at_once_with_its_time_in_milliseconds(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1234.56789)
    store.note(Note("refused", 0, "pi-1", "w is missing"))
    store.event("stopped", reason="", count=0)
    assert lines(store.path / "events.jsonl") == [
        {"time": 1234.568, "event": "refused", "round": 1, "device": "pi-1", "text": "w is missing"},
        {"time": 1234.568, "event": "stopped", "count": 0},
    ]
    again = Store.open(store.path)  # events of all starts are in one file
    again.event("resumed")
    again.close()
    assert len(lines(store.path / "events.jsonl")) == 3
