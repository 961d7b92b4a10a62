"""A device's journal: whole or old, whatever instant it is killed at, and never read for what it is not."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefl.errors import InputError
from edgefl.files import sha256_hex
from edgefl.tensors import save_tensors
from edgefl_device.work.journal import Journal, Kept
from edgefl_device.work.upload import Upload

BUNDLE = "ab" * 32


def kept(round: int) -> Kept:
    """The reply of a round, whose tensors are the round's number; a name may begin as a prefix of ours does."""
    return Kept(
        bundle=BUNDLE,
        round=round,
        nonce=f"{round:016x}",
        examples=10 * round,
        steps=3 * round,
        metrics={"train.loss": 0.5 / round, "state.examples": 3.0},
        reply={"w": np.full(2, round, np.float32), "state.w": np.full(1, -round, np.float32)},
        private={"w": np.full(3, round, np.int64), "reply.w": np.zeros((0, 2), np.float32)},
    )


def assert_kept(got: Kept | None, want: Kept) -> None:
    assert got is not None
    for name in ("bundle", "round", "nonce", "examples", "steps", "metrics"):
        assert getattr(got, name) == getattr(want, name)
    for have, wanted in ((got.reply, want.reply), (got.private, want.private)):
        assert have.keys() == wanted.keys()
        for name, value in wanted.items():
            assert have[name].dtype == value.dtype and have[name].shape == value.shape
            np.testing.assert_array_equal(have[name], value)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "pi-1", "digits")


def test_at_the_beginning_nothing_is_kept(journal: Journal, tmp_path: Path) -> None:
    assert journal.path == tmp_path / "pi-1" / "digits.journal"
    assert journal.read() is None
    assert not journal.path.parent.exists()


def test_what_was_written_last_is_read_by_the_next_life(journal: Journal) -> None:
    for round in (1, 2):
        journal.write(kept(round))
        assert_kept(Journal(journal.path.parent, "digits").read(), kept(round))
    assert Journal(journal.path.parent, "letters").read() is None  # each run has its own


def test_equal_outcomes_are_equal_bytes(journal: Journal) -> None:
    journal.write(kept(1))
    first = journal.path.read_bytes()
    journal.write(kept(2))
    journal.write(kept(1))
    assert journal.path.read_bytes() == first


class Killed(BaseException):
    """The process ends here: nothing after this line is done."""


@pytest.mark.parametrize("instant", ["fsync", "replace"])
def test_killed_between_write_and_rename_it_is_the_old_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, instant: str
) -> None:
    """A new reply with old private state, or the reverse, would train twice for a round or lose what was trained."""
    journal.write(kept(1))

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, instant, kill)
        with pytest.raises(Killed):
            journal.write(kept(2))
    assert_kept(journal.read(), kept(1))
    assert [path.name for path in journal.path.parent.iterdir()] == ["digits.journal"]
    journal.write(kept(2))
    assert_kept(journal.read(), kept(2))


def test_it_is_on_disk_before_it_has_its_name(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that is durable before the bytes are would leave an empty file after a power cut."""
    journal.path.parent.mkdir(exist_ok=True)  # its own name would be made durable first
    done: list[str] = []

    def noted(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any) -> Any:
            done.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, call)

    noted("fsync")
    noted("replace")
    journal.write(kept(1))
    assert done[-3:] == ["fsync", "replace", "fsync"]  # the file, its name, the directory; before them a new folder


def test_a_file_that_is_cut_anywhere_is_damaged(journal: Journal) -> None:
    journal.write(kept(1))
    data = journal.path.read_bytes()
    for stop in range(len(data)):
        journal.path.write_bytes(data[:stop])
        with pytest.raises(InputError, match="is damaged") as caught:
            journal.read()
    assert caught.value.message == f"{journal.path} is damaged: its reply is not what was written"
    assert caught.value.hint == "delete it to begin this run anew; its private state is lost"


def test_the_reply_is_sent_from_the_file(journal: Journal) -> None:
    """The bytes that travel are its end, and are in no memory."""
    upload = journal.write(kept(1))
    travels = save_tensors(kept(1).reply)
    assert (upload.sha256, upload.size_bytes, upload.data) == (sha256_hex(travels), len(travels), b"")
    assert journal.path.read_bytes().endswith(travels)
    assert upload.part(0, 8) + upload.part(8, 10**6) == travels
    assert upload.part(10**6, 10**7) == b""
    assert upload == Upload.at_end_of(journal.path, kept(1).reply)  # as the next life finds it
    in_memory = Upload.of(kept(1).reply)
    assert in_memory.sha256 == upload.sha256 and in_memory.part(3, 5) == travels[3:5]


def test_a_reply_that_is_gone_is_said(journal: Journal) -> None:
    upload = journal.write(kept(1))
    journal.path.unlink()
    with pytest.raises(InputError, match="digits.journal cannot be read: No such file"):
        upload.part(0, 8)


def about(**changes: Any) -> dict[str, Any]:
    return {"bundle": BUNDLE, "round": 1, "nonce": "0", "examples": 1, "metrics": {}} | changes


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "__metadata__"),
        ({"other": json.dumps(about())}, "its metadata lack 'kept'"),
        ({"kept": "{"}, "not JSON"),
        ({"kept": json.dumps(about(round=-1))}, "$.round"),
        ({"kept": json.dumps(about(examples=2**53 + 1))}, "$.examples"),
        ({"kept": json.dumps(about(bundle="b" * 201))}, "$.bundle"),
        ({"kept": json.dumps(about(metrics={"loss": "low"}))}, "$.metrics"),
        ({"kept": json.dumps({"bundle": BUNDLE})}, "missing required field `round`"),
    ],
)
def test_tensors_without_what_belongs_to_them_are_damaged(
    journal: Journal, metadata: dict[str, str] | None, reason: str
) -> None:
    journal.path.parent.mkdir()
    journal.path.write_bytes(save_tensors({"state.w": np.zeros(1, np.float32)}, metadata))
    with pytest.raises(InputError, match=rf"is damaged: .*{re.escape(reason)}"):
        journal.read()


def test_a_folder_in_its_place_is_said(journal: Journal) -> None:
    journal.path.mkdir(parents=True)
    with pytest.raises(InputError, match="digits.journal cannot be read: Is a directory"):
        journal.read()
