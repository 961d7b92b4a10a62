"""Bundles that were made before: found whole or not at all, and never worse than none."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgefl.bundle import Bundle, read
from edgefl_exporter.cache import store

KEY = "k" * 64


def nothing(line: str) -> None:
    raise AssertionError(line)


def kept(place: Path, bundle: Bundle, key: str = KEY) -> Path:
    store.keep(place, key, bundle, nothing)
    return place / f"{key}.{bundle.sha256}"


def test_what_was_kept_is_found_and_its_copy_has_the_same_bytes(tmp_path: Path, regression: Bundle) -> None:
    kept(tmp_path / "cache", regression)
    found = store.find(tmp_path / "cache", KEY)
    assert found is not None and store.find(tmp_path / "cache", "x" * 64) is None
    copied = store.copy(found, tmp_path / "again", regression.manifest.name)
    assert copied.sha256 == regression.sha256
    for file in regression.manifest.files():
        assert (copied.path / file.path).read_bytes() == (regression.path / file.path).read_bytes()
    named = store.copy(found, tmp_path / "other", "other").manifest
    assert (named.name, named.programs) == ("other", regression.manifest.programs)


@pytest.mark.parametrize("file", ["weights.safetensors", "programs/train.onnx", "manifest.json"])
def test_a_damaged_entry_is_removed_and_made_anew(tmp_path: Path, regression: Bundle, file: str) -> None:
    path = kept(tmp_path, regression)
    data = bytearray((path / file).read_bytes())
    data[len(data) // 2] ^= 1
    (path / file).write_bytes(data)
    assert store.find(tmp_path, KEY) is None and not path.exists()
    kept(tmp_path, regression)
    assert store.find(tmp_path, KEY) is not None


def test_a_manifest_that_is_well_formed_but_another_is_damaged(tmp_path: Path, regression: Bundle) -> None:
    path = kept(tmp_path, regression)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"regression"', '"depression"'))
    assert read(path).manifest.name == "depression"
    assert store.find(tmp_path, KEY) is None


def test_many_who_keep_the_same_at_once_leave_one(tmp_path: Path, regression: Bundle) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: kept(tmp_path, regression), range(16)))
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.{regression.sha256}"]
    assert store.find(tmp_path, KEY) is not None


def test_a_full_disk_costs_a_line_and_leaves_nothing(
    tmp_path: Path, regression: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    lines: list[str] = []
    store.keep(tmp_path, KEY, regression, lines.append)
    assert lines == ["not kept for the next time: No space left on device"]
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path: Path, regression: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.keep(tmp_path, KEY, regression, nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_costs_a_line(tmp_path: Path, regression: Bundle) -> None:
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    store.keep(tmp_path / "file" / "bundles", KEY, regression, lines.append)
    assert len(lines) == 1 and lines[0].startswith("not kept for the next time: ")
    assert store.find(tmp_path / "file" / "bundles", KEY) is None


def test_those_that_were_used_longest_ago_go_first(tmp_path: Path, regression: Bundle) -> None:
    paths = [kept(tmp_path, regression, key=letter * 64) for letter in "abc"]
    for age_s, path in zip((10, 20, 30), paths, strict=True):
        os.utime(path, (1e9 - age_s, 1e9 - age_s))
    assert store.find(tmp_path, "c" * 64) is not None  # used just now
    store.sweep(tmp_path, most_bytes=2 * regression.size_bytes)
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["a", "c"]


def test_what_a_kill_has_left_goes_after_a_day(tmp_path: Path) -> None:
    for name, used_s in ((".k.abcdefgh", 1e9), (".k.stillwri", None)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, None if used_s is None else (used_s, used_s))
    store.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".k.stillwri"]


def test_the_folder_is_a_persons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv(store.VARIABLE)
    assert store.folder() == Path("/x/edgefl/bundles")
    monkeypatch.setenv(store.VARIABLE, "/y")
    assert store.folder() == Path("/y/bundles")
    monkeypatch.setenv(store.VARIABLE, "")
    assert store.folder() is None
