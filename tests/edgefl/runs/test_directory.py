"""The directory of a run: nobody else's, and never lost."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
from records import record

from edgefl.aggregator.store import json_line
from edgefl.errors import ConfigError
from edgefl.runs.directory import AUTO, Resume, run_directory
from edgefl.runs.run_file import to_toml
from edgefl.runs.sections import FleetSection, RunFile

CONFIG = RunFile(name="digits", model="zoo:digits", method={"rounds": 40}, fleet=FleetSection(devices=2, data="digits"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Told:
    """What was said, and which directory was given."""

    def __init__(self, resume: Resume = False, given: RunFile = CONFIG) -> None:
        self.lines: list[str] = []
        with run_directory(given, resume=resume, progress=self.lines.append) as (self.config, self.place):
            if not (self.place / "run.json").exists():
                begin(self.place, self.config)


def begin(place: Path, config: RunFile = CONFIG, *, rounds: int = 0, event: str = "stopped") -> None:
    """What a run leaves that has announced a round."""
    for name, text in (
        ("run.toml", to_toml(config)),
        ("run.json", "{}"),
        ("open.json", "{}"),
        ("events.jsonl", json.dumps({"event": event}) + "\n"),
        ("metrics.jsonl", "".join(json_line(record(number + 1)) for number in range(rounds))),
    ):
        (place / name).write_text(text)


def test_runs_that_begin_within_one_second_have_directories_of_their_own() -> None:
    with (
        run_directory(CONFIG, resume=False, progress=print) as (_, first),
        run_directory(CONFIG, resume=False, progress=print) as (_, second),
        run_directory(CONFIG, resume=False, progress=print) as (_, third),
    ):
        assert len({first, second, third}) == 3 and sorted((third, second, first)) == [first, second, third]
        assert all((place / "lock").exists() for place in (first, second, third))


def test_what_never_became_a_run_is_removed_and_nothing_else_is() -> None:
    with run_directory(CONFIG, resume=False, progress=print) as (_, whole):
        with pytest.raises(KeyboardInterrupt), run_directory(CONFIG, resume=False, progress=print) as (_, begun):
            begin(begun)
            raise KeyboardInterrupt
        with pytest.raises(ConfigError), run_directory(CONFIG, resume=False, progress=print) as (_, lost):
            (lost / "bundles").mkdir()
            raise ConfigError("no broker")
        assert (whole.exists(), begun.exists(), lost.exists()) == (True, True, False)
        with pytest.raises(ConfigError, match="another process carries the run"):
            Told(resume=begun.name)  # takes it, and lets it go
            begin(whole)
            Told(resume=whole.name)
        assert whole.exists()


def test_a_new_run_names_the_one_that_was_left_and_one_that_goes_on() -> None:
    first = Told()
    assert first.lines == []
    begin(first.place, rounds=12)
    second = Told()
    (line,) = second.lines
    assert line == (
        f"{first.place} is unfinished at round 12 of 40; this is a new run. "
        f"To go on with that one: --resume {first.place.name}"
    )
    (line,) = Told().lines
    assert line.startswith(f"{second.place} is unfinished at round 0 of 40 (and 1 before it); ")
    with run_directory(CONFIG, resume=True, progress=print) as (_, place):
        assert Told().lines == [f"another process carries the run {place}; this is a new one"]


def test_a_finished_run_is_not_named_unless_its_report_is_missing() -> None:
    first = Told()
    begin(first.place, event="finished")
    assert "is unfinished" in Told().lines[0]
    for place in Path("runs").iterdir():
        begin(place, event="finished")
        (place / "report.html").write_text("")
    assert Told().lines == []


def test_a_run_is_resumed_by_its_name_or_its_directory_and_by_default_the_last_is() -> None:
    first, second = Told(), Told()
    assert Told(resume=True).place == second.place
    assert Told(resume=first.place.name).place == first.place
    assert Told(resume=first.place.resolve()).place == first.place.resolve()
    with pytest.raises(ConfigError, match="no run 'digits-.*9' in runs to resume") as refused:
        Told(resume=first.place.name + "9")
    assert refused.value.hint and "did you mean 'digits-" in refused.value.hint
    with pytest.raises(ConfigError, match="is a run of 'digits'; the run file is of 'other'"):
        Told(resume=first.place, given=msgspec.structs.replace(CONFIG, name="other"))


def test_auto_goes_on_with_an_unfinished_run_and_begins_one_where_there_is_none() -> None:
    first = Told(resume=AUTO)
    (first.place / "open.json").unlink()  # killed while it waited for devices
    assert Told(resume=AUTO).place == first.place
    begin(first.place, event="finished")
    (first.place / "report.html").write_text("")
    second = Told(resume=AUTO)
    assert second.place != first.place and second.lines == []


def test_what_a_resume_does_not_take_from_the_run_file_is_named() -> None:
    code = Path("mine.py")
    code.write_text("one")
    given = RunFile(
        name="digits", bundle="b", method={"rounds": 4, "epochs": 1, "weight": "mine.py:a"}, fleet=CONFIG.fleet
    )
    place = Told(given=given).place
    (place / "weights.py").write_text("one")
    (place / "bundles" / "b").mkdir(parents=True)
    Path("b").mkdir()
    for folder in (place / "bundles" / "b", Path("b")):
        (folder / "manifest.json").write_text("1")
    assert Told(resume=True, given=given).lines == []

    changed = msgspec.structs.replace(
        given,
        seed=3,
        method={"rounds": 9, "epochs": 2, "weight": "mine.py:b"},
        fleet=FleetSection(devices=3, data="digits"),
        round=msgspec.structs.replace(given.round, quorum=0.5),
    )
    code.write_text("two")
    Path("b/manifest.json").write_text("2")
    told = Told(resume=True, given=changed)
    assert told.lines == [
        "the run goes on as it began; not taken from the run file: fleet.devices, method.epochs, method.weight, seed, "
        "method.weight (mine.py has changed), bundle (b has been made anew)"
    ]
    assert (told.config.seed, told.config.method["rounds"], told.config.round.quorum) == (0, 9, 0.5)


def test_a_damaged_run_is_named_without_a_round() -> None:
    place = Told().place
    (place / "events.jsonl").write_text("{")
    (place / "metrics.jsonl").write_text("{")
    assert f"{place} is unfinished; this is a new run" in Told().lines[0]


def test_the_clock_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert len({Told().place for _ in range(3)}) == 3
