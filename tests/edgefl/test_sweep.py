"""What a kill inside a write leaves goes at the next start, and nothing else does. The kills are real."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgefl.aggregator.store import Store
from edgefl.files import directory_atomic, sweep, write_atomic
from edgefl_device.work.state_folder import sweep_state

DYING = """
import os, pathlib, signal, sys
from edgefl.files import directory_atomic, write_atomic
path, name, count = pathlib.Path(sys.argv[1]), sys.argv[3], int(sys.argv[4])
real = getattr(os, name)
def die(*arguments, **named):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
setattr(os, name, die)
if sys.argv[2] == "file":
    write_atomic(path, b"new")
else:
    with directory_atomic(path) as temporary:
        (temporary / "a").write_text("new")
"""


def killed(path: Path, kind: str, call: str, count: int = 1) -> list[str]:
    """A process is killed at the `count`-th `call` of a write to `path`; what is in the folder then."""
    path.parent.mkdir(parents=True, exist_ok=True)  # a new folder would be synced first
    done = subprocess.run([sys.executable, "-c", DYING, str(path), kind, call, str(count)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return sorted(p.name for p in path.parent.iterdir())


def left(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file(tmp_path: Path, call: str) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    temporary, kept = killed(path, "file", call)
    assert temporary.startswith(".run.json.") and kept == "run.json"
    assert sweep(tmp_path, ["*.json"]) == 1
    assert left(tmp_path) == ["run.json"] and path.read_text() == "old"


@pytest.mark.parametrize(("call", "count"), [("fsync", 1), ("fsync", 2), ("replace", 1)])
def test_a_new_directory(tmp_path: Path, call: str, count: int) -> None:
    (temporary,) = killed(tmp_path / "digits", "directory", call, count)
    assert temporary.startswith(".digits.")
    assert sweep(tmp_path, ["*/"]) == 1 and left(tmp_path) == []


def old(tmp_path: Path) -> Path:
    with directory_atomic(tmp_path / "digits") as temporary:
        (temporary / "a").write_text("old")
    return tmp_path / "digits"


# The old directory is put aside by the first rename, the new one takes its place by the second.
@pytest.mark.parametrize("count", [1, 2])
def test_a_directory_that_was_being_replaced_is_there_again(tmp_path: Path, count: int) -> None:
    path = old(tmp_path)
    names = killed(path, "directory", "replace", count)
    assert ("digits" in names) == (count == 1) and len(names) == (3 if count == 1 else 2)
    assert sweep(tmp_path, ["*/"]) == 2
    assert left(tmp_path) == ["digits", "digits/a"] and (path / "a").read_text() == "old"


def test_a_directory_that_was_replaced(tmp_path: Path) -> None:
    path = old(tmp_path)
    killed(path, "directory", "unlink")  # of what was put aside
    assert sweep(tmp_path, ["*/"]) == 1
    assert left(tmp_path) == ["digits", "digits/a"] and (path / "a").read_text() == "new"


def test_nothing_of_a_persons_goes(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".run.json.abcd1234").write_text("mine")
    folder = tmp_path / "run"
    (folder / ".cache.abcd1234").mkdir(parents=True)  # no file's name, and no pattern of a directory
    (folder / ".run.json.abcdefgh").mkdir()  # no file
    (folder / "models").symlink_to(elsewhere)
    (folder / "pictures").mkdir()
    (folder / ".open.json.abcd1234").symlink_to(elsewhere / ".run.json.abcd1234")
    for name in (
        *(
            "run.json",
            "run.json.abcd1234",
            ".run.json",
            ".run.json.abcd123",
            ".run.json.abcd12345",
            ".run.json.ABCD1234",
        ),
        *(".notes.markdown", ".run.json.old.abcd1234", ".run.json.abcd1234.swp", "pictures/.mine.json.abcd1234"),
    ):
        (folder / name).write_text("mine")
    before = left(tmp_path)
    assert sweep(folder, ["*.json", "models/*.json", "nowhere/*.json"]) == 0
    assert left(tmp_path) == before
    assert sweep(tmp_path / "missing", ["*"]) == 0


def test_a_run_directory_is_swept_when_it_is_opened(tmp_path: Path) -> None:
    place = tmp_path / "run"
    Store.create(place, "").close()
    mine = place / "devices" / "pi-1" / ".run.journal.abcd1234"  # its process may still write there
    (place / ".gitignore.abcd1234").write_text("")
    mine.parent.mkdir(parents=True)
    killed(mine.with_name("run.journal"), "file", "fsync")
    shutil.copy(next(mine.parent.iterdir()), mine)
    before = left(place)
    for path in ("state.safetensors", "metrics.jsonl", "models/a.onnx", "pictures/epoch-001.png", "data/device-1.npz"):
        killed(place / path, "file", "fsync")
    killed(place / "bundles" / "digits", "directory", "fsync")
    Store.open(place).close()
    assert left(place) == sorted([*before, "bundles", "data", "models", "pictures"])


def test_a_state_folder_is_swept(tmp_path: Path) -> None:
    files = (
        *("run.journal", "run.safetensors", "run.kept/dreams/3.safetensors"),
        *("bundles/0123/manifest.json", "bundles/0123/programs/train.onnx", "bundles/0123/a/b/c/d"),
    )
    for name in files:
        write_atomic(tmp_path / name, b"whole")
        killed(tmp_path / name, "file", "fsync")
    assert sweep_state(tmp_path) == len(files)
    assert [name for name in left(tmp_path) if (tmp_path / name).is_file()] == sorted(files)
