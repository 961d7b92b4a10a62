"""Files on a full disk: the error names the place, and nothing is half-written."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext as nothing
from pathlib import Path

import pytest

from edgefl.aggregator.store import Store
from edgefl.files import directory_atomic, make_folder, write_atomic

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(*FULL.args)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as refused:
        write_atomic(path, b"new")
    assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_names_the_directory_and_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(OSError) as refused, directory_atomic(tmp_path / "a.bundle"):
        raise OSError(*FULL.args)
    assert refused.value.filename == str(tmp_path / "a.bundle") and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("name", ["events.jsonl", "devices.jsonl"])
def test_a_full_disk_names_the_lines_that_could_not_be_appended(tmp_path: Path, name: str) -> None:
    store = Store.create(tmp_path / "run", "")
    store.close()
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to("/dev/full")
    store = Store(tmp_path / "run", 1, "")
    with pytest.raises(OSError) as refused:
        store._append("devices.jsonl", {}) if name == "devices.jsonl" else store.event("started")
    assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, str(tmp_path / "run" / name))
    with pytest.raises(OSError) if name == "events.jsonl" else nothing():
        store.close()


def test_a_folder_is_made_with_those_above_it_and_each_name_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("edgefl.files.sync_directory", synced.append)
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and synced == [tmp_path, tmp_path / "a"]
