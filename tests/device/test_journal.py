"""What a device must not forget: one file that is old or new at every instant, and state of its own bundle alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgefl import protocol
from edgefl.bundle import Bundle
from edgefl.protocol import Announcement, Assignment, BlobRef, ManifestRef, Offer, Outgoing
from edgefl_device.wire.actions import Perform
from edgefl_device.wire.session import Session
from edgefl_device.work.journal import Journal, Kept

RUN, NONCE = "toy", "a" * 16
FIRST = Kept(
    bundle="0" * 64,
    round=0,
    nonce=NONCE,
    examples=2,
    steps=1,
    metrics={"train.loss": 0.5},
    reply={"w": np.array([1, 2], np.float32)},
    private={"count": np.array(1), "w": np.array([3, 4], np.float32)},
)


def equal(one: Kept | None, other: Kept) -> bool:
    assert one is not None
    same = all(
        mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in ((one.reply, other.reply), (one.private, other.private))
    )
    return same and replace(one, reply={}, private={}) == replace(other, reply={}, private={})


def test_what_was_kept_is_read_by_the_next_process(tmp_path: Path) -> None:
    assert Journal(tmp_path, RUN).read() is None
    Journal(tmp_path, RUN).write(FIRST)
    assert equal(Journal(tmp_path, RUN).read(), FIRST)
    assert Journal(tmp_path, "another").read() is None


def test_it_is_old_or_new_at_every_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever something reaches the disk, a process that began then would read the one before, or this one whole: the
    file, and then the directory that names it."""
    journal, second = Journal(tmp_path, RUN), replace(FIRST, round=1, private={"count": np.array(2)})
    journal.write(FIRST)
    seen: list[int] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        kept = journal.read()
        assert kept is not None and equal(kept, FIRST if kept.round == 0 else second)
        seen.append(kept.round)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    journal.write(second)
    assert seen == [0, 1]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, RUN)
    journal.write(FIRST)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            journal.write(replace(FIRST, round=1))
    assert equal(journal.read(), FIRST)
    assert [path.name for path in tmp_path.iterdir()] == [f"{RUN}.journal"]


def session_of(bundle: Bundle, folder: Path, kept: Kept) -> Session:
    """A device's next process, that has this bundle and this journal on its disk, and has been assigned the bundle."""
    shutil.copytree(bundle.path, folder / "bundles" / bundle.sha256[:16])
    Journal(folder, RUN).write(kept)
    session = Session(RUN, "pi-1", folder, instance="x")
    session.will()
    session.connected(0.0, again=False)
    assignment = Assignment(1, ManifestRef(bundle.sha256, len(bundle.manifest_bytes)))
    session.receive(protocol.down_topic(RUN, "pi-1"), protocol.encode(assignment), 0.0)
    return session


def announced(session: Session, bundle: Bundle, round: int) -> list[object]:
    weights = bundle.manifest.weights
    message = Announcement(1, round, 0, NONCE, 60.0, ["pi-1"], [], BlobRef(weights.sha256, weights.size_bytes))
    return list(session.receive(protocol.round_topic(RUN), protocol.encode(message), 0.0))


def test_a_process_that_begins_has_the_state_of_its_bundle(regression: Bundle, tmp_path: Path) -> None:
    session = session_of(regression, tmp_path, replace(FIRST, bundle=regression.sha256))
    assert session.private.tensors["w"].tolist() == [3, 4]
    assert session.private.version == 0  # no runtime holds it
    [offered] = announced(session, regression, 0)  # a reply that is on disk is not made again
    assert isinstance(offered, Outgoing) and isinstance(protocol.decode(offered.payload)[0], Offer)


def test_private_state_of_another_bundle_fits_no_other(regression: Bundle, tmp_path: Path) -> None:
    session = session_of(regression, tmp_path, FIRST)
    assert not session.private.tensors
    [work] = announced(session, regression, 1)
    assert isinstance(work, Perform)
    kept = Journal(tmp_path, RUN).read()
    assert equal(kept, FIRST)  # until there is something of the new one to keep
