"""The report of a run directory, and the page of all runs of a folder, written again from what lies there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import Page
from records import record

from edgefl.aggregator.classes import Examples
from edgefl.aggregator.store import Store
from edgefl.cli import main
from edgefl.errors import ConfigError
from edgefl.method import State
from edgefl.results.summary import read_summary
from edgefl.runs.about import write_about
from edgefl.runs.reports import report_again, settings_of_devices
from edgefl.runs.run_file import parse_run_file

RUN_FILE = """
name = "{name}"
model = "nets.py:cnn"
seed = 7
[method]
name = "fedprox"
[evaluate]
data = "digits"
target_accuracy = 0.6
"""


def make_run(runs: Path, name: str, rounds: int = 3, finished: bool = True) -> Path:
    """A run of pi-1: 25, 50 and 75 % right. As a copy, it has no bundles."""
    place = runs / name
    place.mkdir(parents=True)
    write_about(place)
    store = Store.create(place, RUN_FILE.format(name=name))
    store.event("started", epoch=1)
    store.save_device("pi-1", "all", Examples(1437, 360))
    for number in range(1, rounds + 1):
        store.save_round(State(number, {}), record(number, accuracy=number / 4, bytes_up=2**20))
    if finished:
        store.event("finished")
    store.close()
    return place


def written(place: Path) -> Page:
    return Page((place / "report.html").read_text())


def again(place: Path, **more: object) -> list[str]:
    """Write the report; what is told meanwhile."""
    told: list[str] = []
    report_again(place, progress=told.append, **more)  # type: ignore[arg-type]
    return told


def test_a_copy_without_bundles_has_a_report(tmp_path: Path) -> None:
    place = make_run(tmp_path, "a")
    assert again(place) == []
    page = written(place)
    lead = " ".join(page.all("p"))
    assert "FedProx trained nets.py:cnn on 1 device for 3 rounds to 75.00% test accuracy, in 1.5 s; " in lead
    assert " with preparation. Its target of 60.00% was reached in round 3, after 3.0 MiB and 1.5 s." in lead
    assert page.rows("device")[1][:3] == ["pi-1", "all", "round 3"]
    assert dict(zip(page.rows("device")[0], page.rows("device")[1], strict=True))["examples"] == "1,437"
    told = dict(zip(page.all("dt"), page.all("dd"), strict=False))
    assert told["method"] == "FedProx" and told["seed"] == "7"
    assert page.all("a")[:1] == ["arXiv:1812.06127"]
    assert not (tmp_path / "index.html").exists()  # only a run's end makes one


def test_another_target_is_asked_for(tmp_path: Path) -> None:
    place = make_run(tmp_path, "a")
    again(place, target=0.5)
    assert "Its target of 50.00% was reached in round 2" in " ".join(written(place).all("p"))
    summary = read_summary(place)
    assert summary is not None and summary.reached is not None and summary.reached.seconds == 1.0


def test_another_run_is_drawn_over_it(tmp_path: Path) -> None:
    one, other = make_run(tmp_path, "one"), make_run(tmp_path, "other", rounds=1)
    again(one, beside=other)
    runs = written(one).data["runs"]
    assert [(run["name"], run["rounds"]) for run in runs] == [("one", 3), ("other", 1)]


def test_a_run_that_goes_on_says_so(tmp_path: Path) -> None:
    again(make_run(tmp_path, "a", finished=False))
    assert "on 1 device for 3 rounds so far to 75.00% test accuracy" in " ".join(written(tmp_path / "a").all("p"))
    make_run(tmp_path, "b"), again(tmp_path)
    rows = Page((tmp_path / "index.html").read_text()).rows("run")
    assert sorted(row[rows[0].index("rounds")] for row in rows[1:]) == ["3", "3 so far"]


def test_a_folder_of_runs_gets_its_page_and_a_damaged_run_hides_no_other(tmp_path: Path) -> None:
    make_run(tmp_path, "good"), make_run(tmp_path, "too")
    (make_run(tmp_path, "bad") / "metrics.jsonl").write_text("{}\n")
    (told,) = again(tmp_path)
    assert told.startswith("no report: ") and "bad/metrics.jsonl is damaged" in told
    page = Page((tmp_path / "index.html").read_text())
    assert {row[0]: row[1] for row in page.rows("run")[1:]} == {
        "good": "FedProx",
        "too": "FedProx",
        "bad": "no report yet",
    }
    assert {run["name"] for run in page.data["runs"]} == {"good", "too"}


def test_a_page_of_somebody_elses_is_not_overwritten(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ConfigError, match="is no page of edgefl's"):
        again(tmp_path)
    again(tmp_path / "a")
    assert (tmp_path / "index.html").read_text() == "mine"


def test_the_command(tmp_path: Path) -> None:
    place = make_run(tmp_path, "a")
    done = CliRunner().invoke(main, ["report", str(place), "--target", "0.5"])
    assert done.exit_code == 0 and done.stdout == f"report: {place / 'report.html'}\n"
    assert json.loads((place / "summary.json").read_text())["target"] == 0.5
    assert CliRunner().invoke(main, ["report", str(tmp_path)]).stdout == f"report: {tmp_path / 'index.html'}\n"
    assert CliRunner().invoke(main, ["report", str(place), "--target", "90"]).exit_code == 2


def test_the_command_as_json_and_with_a_log(tmp_path: Path) -> None:
    place, log = make_run(tmp_path, "a"), tmp_path / "log"
    done = CliRunner().invoke(main, ["report", str(place), "--target", "0.5", "--format", "json"])
    found = json.loads(done.stdout)
    assert found["report"] == str(place / "report.html") and found["accuracy"] == 0.75 and found["rounds"] == 3
    assert found["reached"] == {"round": 2, "bytes": 2 * 2**20, "seconds": 1.0} and "charts" not in found
    (make_run(tmp_path, "bad") / "metrics.jsonl").write_text("{}\n")
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--quiet", "--log", str(log)])
    assert done.stderr == "" and "no report: " in log.read_text()


@pytest.mark.parametrize("key", ["metrics.jsonl", "run.toml"])
def test_what_is_no_run_is_refused(key: str, tmp_path: Path) -> None:
    place = make_run(tmp_path, "a")
    (place / key).unlink()
    with pytest.raises(ConfigError):
        again(place)
    assert not (place / "report.html").exists()


def test_profiles_count_more_than_classes_and_are_taken_by_turns(tmp_path: Path) -> None:
    text = """
        name = "a"
        [[bundle]]
        path = "little.bundle"
        settings = { max_steps = 4, tolerance = 0.1 }
        [fleet]
        devices = 3
        data = "digits"
        [[fleet.profile]]
        settings = { max_steps = 2 }
        [[fleet.profile]]
    """
    config = parse_run_file(text, where="here")
    held = {f"device-{i}": "little" for i in (1, 2, 3)} | {"pi-1": "little", "pi-2": "gone"}
    assert settings_of_devices(config, {}, held) == {
        "device-1": {"max_steps": 2.0, "tolerance": 0.1},
        "device-2": {"max_steps": 4.0, "tolerance": 0.1},
        "device-3": {"max_steps": 2.0, "tolerance": 0.1},
        "pi-1": {"max_steps": 4.0, "tolerance": 0.1},
    }


def test_a_method_of_ones_own_is_called_by_its_file(tmp_path: Path) -> None:
    place = make_run(tmp_path, "a")
    text = (place / "run.toml").read_text().replace('"fedprox"', f'"{tmp_path}/method.py:Mine"')
    (place / "run.toml").write_text(text)
    again(place)
    assert "method.py:Mine trained nets.py:cnn" in " ".join(written(place).all("p"))
