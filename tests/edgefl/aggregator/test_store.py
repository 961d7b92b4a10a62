"""A run on disk: killed at any instant, it goes on with the old round or with the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records

from edgefl.aggregator.record import Record
from edgefl.aggregator.rounds import Announce, Note, OpenRound
from edgefl.aggregator.store import Store
from edgefl.errors import ConfigError
from edgefl.method import Ask, State

CONFIG = 'name = "digits"\n'


def state(round: int) -> State:
    """The weights of round n are all n, plus a part that float32 cannot hold in few digits."""
    w = np.full((2, 3), round, np.float32) + np.float32(1 / 3)
    return State(
        round, {"w": w, "scale": np.array(round, np.float16), "n": np.array([round])}, {"residual": 0.1 * round}
    )


def record(number: int) -> Record:
    return records.record(number, loss=1 / number, metrics={"gr\u00fcn.loss": 0.1 * number})


def assert_state(got: State | None, want: State) -> None:
    assert got is not None
    assert (got.round, got.numbers) == (want.round, want.numbers)
    assert got.tensors.keys() == want.tensors.keys()
    for name, value in want.tensors.items():
        assert got.tensors[name].dtype == value.dtype and got.tensors[name].shape == value.shape
        assert got.tensors[name].tobytes() == value.tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run with two durable rounds."""
    path = tmp_path / "runs" / "digits"
    store = Store.create(path, CONFIG)
    store.save_round(state(1), record(1))
    store.save_round(state(2), record(2))
    store.close()
    return path


@pytest.fixture
def reopened(path: Path) -> Iterator[Store]:
    store = Store.open(path)
    yield store
    store.close()


def reopen(path: Path) -> tuple[State | None, list[Record], OpenRound | None]:
    store = Store.open(path)
    try:
        return store.load_state(), store.records(), store.open_round()
    finally:
        store.close()


# --- one life after the other -------------------------------------------------------------------------------------


def test_a_new_run_has_nothing_yet(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "deep" / "run", CONFIG)
    assert (store.epoch, store.load_state(), store.records(), store.open_round()) == (1, None, [], None)
    assert (tmp_path / "deep" / "run" / "run.toml").read_text() == CONFIG
    store.close()


def test_what_was_saved_is_there_after_a_restart(reopened: Store) -> None:
    assert_state(reopened.load_state(), state(2))
    assert reopened.records() == [record(1), record(2)]


def test_every_start_raises_the_epoch_and_keeps_the_secret(tmp_path: Path) -> None:
    seen = []
    store = Store.create(tmp_path, CONFIG)
    for _ in range(3):
        seen.append((store.epoch, store.secret))
        store.close()
        store = Store.open(tmp_path)
    store.close()
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert len({secret for _, secret in seen}) == 1
    assert len(store.secret) == 32


def test_two_runs_have_different_secrets(tmp_path: Path) -> None:
    stores = [Store.create(tmp_path / name, CONFIG) for name in "ab"]
    assert stores[0].secret != stores[1].secret
    for store in stores:
        store.close()


def test_the_open_round_is_what_was_announced_last(path: Path, reopened: Store) -> None:
    ask = Ask((), {})
    reopened.save_open_round(Announce(2, 0, "0" * 16, ask, ("a",), 60.0))
    reopened.save_open_round(Announce(2, 1, "0" * 16, ask, ("a", "b"), 60.0, quorum=2, weight_limit=1.5))
    assert reopen(path)[2] == OpenRound(2, 1, ("a", "b"), quorum=2, weight_limit=1.5)


def test_events_are_for_a_person(path: Path, reopened: Store) -> None:
    reopened.note(Note("left", 2, "pi-1"))
    reopened.event("stopped")
    lines = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "time"} for line in lines] == [
        {"event": "left", "round": 3, "device": "pi-1"},  # people count rounds from 1
        {"event": "stopped"},
    ]


def test_a_run_is_not_begun_twice(path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run already") as refused:
        Store.create(path, "other")
    assert "--resume" in str(refused.value.hint)
    assert (path / "run.toml").read_text() == CONFIG
    assert_state(reopen(path)[0], state(2))


def test_there_must_be_a_run_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run at .*: run\.json is missing"):
        Store.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- killed -------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """kill -9, as far as a test can do it: no handler of ours may make anything whole."""


def kill_at(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Raise Killed instead of the `count`-th call that makes something durable or visible, and in all after it."""
    calls: list[str] = []

    def dying(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            if len(calls) >= count and name != "unlink":
                raise Killed(name)
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace"):
        dying(name)
    monkeypatch.setattr(os, "unlink", lambda path: None)  # a killed process tidies up nothing
    return calls


# save_round: fsync of the state, its rename, fsync of the directory, fsync of the metrics
@pytest.mark.parametrize("instant", range(5))
def test_killed_while_a_round_is_saved(path: Path, monkeypatch: pytest.MonkeyPatch, instant: int) -> None:
    store = Store.open(path)
    with monkeypatch.context() as patched:
        calls = kill_at(patched, instant)
        try:
            store.save_round(state(3), record(3))
            assert instant == 4 and calls == ["fsync", "replace", "fsync", "fsync"]
        except Killed:
            assert len(calls) == instant
    store.close()
    loaded, records, _ = reopen(path)
    durable = 2 if instant < 2 else 3
    assert_state(loaded, state(durable))
    assert records == [record(i + 1) for i in range(durable)]
    go_on = Store.open(path)
    go_on.save_round(state(durable + 1), record(durable + 1))
    go_on.close()
    assert_state(reopen(path)[0], state(durable + 1))
    assert len(reopen(path)[1]) == durable + 1


@pytest.mark.parametrize("instant", range(3))
def test_killed_while_a_run_is_begun_or_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: int) -> None:
    with monkeypatch.context() as patched:
        kill_at(patched, instant)
        with pytest.raises(Killed):
            Store.create(tmp_path, CONFIG)
    store = Store.create(tmp_path, CONFIG)  # run.json was not there yet: begun anew
    store.save_round(state(1), record(1))
    store.close()
    with monkeypatch.context() as patched:
        kill_at(patched, instant)
        with pytest.raises(Killed):
            Store.open(tmp_path)
    again = Store.open(tmp_path)
    assert again.epoch == (2 if instant < 2 else 3)  # never the same number for two lives that announced something
    assert again.secret == store.secret
    assert_state(again.load_state(), state(1))
    again.close()


@pytest.mark.parametrize("instant", range(2))
def test_killed_while_a_round_is_announced(path: Path, monkeypatch: pytest.MonkeyPatch, instant: int) -> None:
    store = Store.open(path)
    store.save_open_round(Announce(2, 0, "0" * 16, Ask((), {}), ("a",), 60.0))
    with monkeypatch.context() as patched:
        kill_at(patched, instant)
        with pytest.raises(Killed):
            store.save_open_round(Announce(2, 1, "0" * 16, Ask((), {}), ("a", "b"), 60.0))
    store.close()
    assert reopen(path)[2] == OpenRound(2, 0, ("a",))


def test_a_metrics_line_that_is_cut_anywhere_is_repaired(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # slow, and nothing is lost here
    whole = (path / "metrics.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    for stop in range(first, len(whole) + 1):
        (path / "metrics.jsonl").write_bytes(whole[:stop])
        assert reopen(path)[1] == [record(1), record(2)]
        assert (path / "metrics.jsonl").read_bytes() == whole


def test_a_failed_write_leaves_no_litter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, say: an error, not a kill."""
    store = Store.open(path)
    before = sorted(path.iterdir())

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            store.save_round(state(3), record(3))
    assert sorted(path.iterdir()) == before
    store.save_round(state(3), record(3))
    store.close()
    assert_state(reopen(path)[0], state(3))


# --- damaged ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"epoch": 1}', '{"epoch": "one", "secret": "s"}', "\xff"])
def test_a_damaged_run_json_is_named(path: Path, text: str) -> None:
    (path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"run\.json is damaged: "):
        Store.open(path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.safetensors", b""),
        ("state.safetensors", b"\x05\0\0\0\0\0\0\0{"),
        ("state.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        ("metrics.jsonl", b"\xff\n"),
        ("metrics.jsonl", b'{"round": 1}\nnonsense\n{"round": 2}\n'),
    ],
)
def test_a_damaged_state_or_record_is_named(path: Path, file: str, content: bytes) -> None:
    (path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{file} is damaged: "):
        Store.open(path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"round": 1}'])
def test_a_damaged_open_round_is_named(path: Path, content: bytes) -> None:
    (path / "open.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"open\.json is damaged: "):
        reopen(path)
