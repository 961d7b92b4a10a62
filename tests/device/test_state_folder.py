"""A device's state folder: nobody else's business, and no larger than the runs that still count."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from edgefl.files import directory_atomic, locked, make_private, write_atomic
from edgefl_device.work.state_folder import Runs

FILES = ("journal", "epoch", "failed", "safetensors", "kept/dreams/1.safetensors")


def used(folder: Path, run: str, bundle: str) -> None:
    """What a run leaves in a state folder."""
    Runs(folder).begin(run, bundle * 64)
    for ending in FILES:
        write_atomic(folder / f"{run}.{ending}", b"mine")
    write_atomic(folder / "bundles" / (bundle * 16) / "manifest.json", b"{}")


def left(folder: Path) -> set[str]:
    """The runs and bundles of which anything is there."""
    names = {path.name.partition(".")[0] for path in folder.iterdir()} - {"runs", "bundles", "life"}
    return names | {path.name[0] for path in (folder / "bundles").iterdir()}


def test_the_last_finished_runs_stay(tmp_path: Path) -> None:
    for run, bundle in (("one", "a"), ("two", "b"), ("three", "a"), ("four", "c")):
        used(tmp_path, run, bundle)
        Runs(tmp_path).finish(run)
    assert Runs(tmp_path).sweep(keep=4) == []
    assert Runs(tmp_path).sweep(keep=2) == ["one", "two"]
    assert left(tmp_path) == {"three", "four", "a", "c"}  # three has the bundle that one had
    assert all((tmp_path / f"three.{ending}").exists() for ending in FILES)
    assert Runs(tmp_path).sweep(keep=2) == []
    assert Runs(tmp_path).sweep(keep=1) == ["three"]
    assert left(tmp_path) == {"four", "c"}


def test_a_run_that_is_not_finished_stays_whole(tmp_path: Path) -> None:
    """However many are finished after it: its private state is nowhere else."""
    used(tmp_path, "paused", "a")
    used(tmp_path, "again", "b")
    Runs(tmp_path).finish("again")
    Runs(tmp_path).begin("again", "b" * 64)  # its aggregator was started once more, for more rounds
    write_atomic(tmp_path / "older.journal", b"of a run that the list does not know")
    for run in ("x", "y"):
        used(tmp_path, run, "c")
        Runs(tmp_path).finish(run)
    assert Runs(tmp_path).sweep(keep=1) == ["x"]
    assert left(tmp_path) == {"paused", "again", "older", "y", "a", "b", "c"}


def test_the_order_is_that_of_their_ends(tmp_path: Path) -> None:
    for run in ("long", "short"):
        used(tmp_path, run, "a")
    for run in ("short", "long"):
        Runs(tmp_path).finish(run)
    assert Runs(tmp_path).sweep(keep=1) == ["short"]


@pytest.mark.parametrize("data", [b"", b"{", b'[{"name": "../mine", "bundle": "%s", "finished": true}]' % (b"a" * 64)])
def test_a_damaged_list_sweeps_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "mine.journal").write_bytes(b"mine")
    state = tmp_path / "state"
    used(state, "one", "a")
    (state / "runs.json").write_bytes(data)
    assert Runs(state).sweep(keep=0) == []
    assert (tmp_path / "mine.journal").exists() and left(state) == {"one", "a"}


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_nobody_else_can_look_into_it(tmp_path: Path) -> None:
    """700 and 600, whatever the umask lets others do elsewhere."""
    before = os.umask(0)
    try:
        state = tmp_path / "devices" / "pi-1"
        make_private(state)
        write_atomic(state / "bundles" / "a" / "programs" / "train.onnx", b"")
        with directory_atomic(state / "whole") as folder:
            (folder / "file").write_text("")
        with locked(state / "lock", RuntimeError("held")):  # type: ignore[arg-type]
            pass
        public = tmp_path / "runs"
        public.mkdir()
        public.chmod(0o755)
        write_atomic(public / "digits" / "report.html", b"for everybody")
    finally:
        os.umask(before)
    for path in (state, state / "whole", state / "bundles", state / "bundles" / "a" / "programs"):
        assert mode(path) == "0o700", path
    for path in (state / "bundles" / "a" / "programs" / "train.onnx", state / "lock"):
        assert mode(path) == "0o600", path
    assert mode(public / "digits") == "0o755" and mode(public / "digits" / "report.html") == "0o644"


def test_a_folder_that_was_open_is_closed(tmp_path: Path) -> None:
    state = tmp_path / "pi-1"
    state.mkdir(mode=0o755)
    make_private(state)
    assert mode(state) == "0o700"
