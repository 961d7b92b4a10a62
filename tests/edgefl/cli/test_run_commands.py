"""What `run` and `aggregate` ask of the verbs, and what they say when a run was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from records import record

from edgefl.aggregator.store import json_line
from edgefl.cli import main
from edgefl.runs.result import Interrupted, Result


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Any]]:
    """What the verbs are asked: a run file, and what to resume. They say that a run of two rounds was stopped."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "runs" / "a-20260102-030405"
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text(json_line(record(1)) + json_line(record(2)))
    calls: list[tuple[str, Any]] = []

    def verb(run_file: Path, *, resume: Any, broker: str | None = None, **more: Any) -> Result:
        calls.append((str(run_file), resume))
        raise Interrupted(Result(place, finished=resume == "at its end"))

    monkeypatch.setattr("edgefl.runs.run.run", verb)
    monkeypatch.setattr("edgefl.runs.run.aggregate", verb)
    return calls


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        ("a.toml", False),
        ("a.toml --resume", True),
        ("--resume a.toml", True),
        ("a.toml --resume a-20260102-030405", "a-20260102-030405"),
        ("--resume=runs/a-20260102-030405 a.toml", "runs/a-20260102-030405"),
        ("a.toml --resume auto --quiet", "auto"),
        ("a.toml --resume --quiet", True),
    ],
)
def test_what_is_resumed(asked: list[tuple[str, Any]], words: str, resume: Any) -> None:
    for command in ("run", "aggregate"):
        assert CliRunner().invoke(main, [command, *words.split()]).exit_code == 130
    assert asked == [("a.toml", resume)] * 2


def test_without_a_run_file_it_is_wrong_usage() -> None:
    for words in (["run"], ["aggregate", "--broker", "mqtt://x"]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 2 and "Missing argument 'RUN_FILE'" in done.stderr


def test_a_stopped_run_says_how_to_go_on_with_it_and_no_password(asked: list[tuple[str, Any]]) -> None:
    done = CliRunner().invoke(main, ["aggregate", "a.toml", "--broker", "mqtt://me:s3@cret@host:1"])
    assert "stopped after 2 rounds, everything is saved in runs/a-20260102-030405" in done.stderr
    assert done.stderr.endswith("--broker 'mqtt://me:***@host:1' --resume a-20260102-030405\n")
    assert "cret" not in done.output


def test_a_run_stopped_while_its_report_was_written_says_how_to_get_it(asked: list[tuple[str, Any]]) -> None:
    done = CliRunner().invoke(main, ["run", "a.toml", "--resume", "at its end"])
    assert done.exit_code == 130 and "report:" not in done.stdout
    assert done.stderr.endswith(
        "stopped before its report was written; get it with: edgefl report runs/a-20260102-030405\n"
    )
