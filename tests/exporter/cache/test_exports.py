"""Exports of one model, one after the other: what is taken from the cache, and what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgefl.cli import main
from edgefl.own_code import import_file
from edgefl_exporter import export_source
from edgefl_exporter.cache import sources, store

SECOND = "made before"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(store.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_command_says_that_it_has_a_bundle_already_and_can_be_told_to_make_it_anew(tmp_path: Path) -> None:
    def run(*options: str) -> tuple[str, bool]:
        words = ["export", "zoo:regression", "--programs", "predict", "--format", "json", "-o", str(tmp_path / "out")]
        result = CliRunner().invoke(main, [*words, *options])
        return json.loads(result.stdout)["sha256"], SECOND in result.stderr

    first, cached = run()
    assert not cached
    assert run() == (first, True)
    assert run("--no-cache") == (first, False)


def test_a_name_is_no_part_of_what_is_kept_options_and_weights_are(tmp_path: Path, cache: Path) -> None:
    lines: list[str] = []

    def made(name: str, **options: object) -> bool:
        lines.clear()
        given = {"programs": ["predict"], **options}
        bundle = export_source("zoo:regression", given, tmp_path / name, name, progress=lines.append)
        assert bundle.manifest.name == name
        return not any(SECOND in line for line in lines)

    assert made("a")
    assert not made("b")
    assert made("c", range=(0, 2))
    assert made("d", seed=1)
    assert len(list((cache / "bundles").iterdir())) == 3


def test_edgefl_itself_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lower.py").write_text("x = 1\n")
    monkeypatch.setattr(sources, "OURS", (tmp_path,))
    before = sources.versions()
    assert sources.versions() == before
    (tmp_path / "lower.py").write_text("x = 2\n")
    assert sources.versions() != before


def test_every_file_that_somebodys_model_imports_decides_and_what_it_read_elsewhere(tmp_path: Path) -> None:
    def hashes() -> Iterator[str]:
        yield sources.own_code()
        (tmp_path / "helper_of_nets.py").write_text("WIDTH = 3\n")
        (tmp_path / "nets.py").write_text("from helper_of_nets import WIDTH\nSCALE = 1.0\n")
        nets = import_file(tmp_path / "nets.py")
        yield sources.own_code()
        (tmp_path / "helper_of_nets.py").write_text("WIDTH = 3 + 0\n")
        yield sources.own_code()
        nets.SCALE = 2.0  # as from a file or the environment
        yield sources.own_code()

    found = list(hashes())
    assert len(set(found)) == len(found)
    assert sources.own_code() == found[-1]
