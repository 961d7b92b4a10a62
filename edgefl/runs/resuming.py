"""Going on with a run: what of a run file counts anew, what does not, and which runs were left before their end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from edgefl.aggregator.store import read_records
from edgefl.errors import EdgeflError
from edgefl.manifest import MANIFEST
from edgefl.runs.questions import length_of
from edgefl.runs.run_file import OWN_CODE, kind_of, own_code_of, parse_run_file, with_own_code
from edgefl.runs.sections import RunFile

LAST_BYTES = 2**16  # of events.jsonl, the last line of which says how a run was left
ANEW = ("broker", "round", "evaluate", "runs")  # where it is, how rounds are closed, how the model is evaluated


def resumed(saved: RunFile, given: RunFile) -> RunFile:
    """The run file to go on with: seed, method, model and fleet stay the run's own; the sections `ANEW` and how many
    rounds there are may be given anew."""
    method = dict(saved.method)
    length = length_of(kind_of(saved, "run file"))
    if length in given.method:
        method[length] = given.method[length]
    return msgspec.structs.replace(saved, method=method, **{name: getattr(given, name) for name in ANEW})


def ignored(saved: RunFile, given: RunFile, place: Path) -> list[str]:
    """What a run file says now and the run that goes on does not take: "seed", "method.epochs", "fleet.devices".

    saved    as it stands in the run directory `place`
    """
    now, then = (_settings(one, place) for one in (given, saved))
    anew = {f"method.{length_of(kind_of(saved, 'run file'))}"}
    names = [
        name
        for name in sorted(now.keys() | then.keys())
        if name not in anew and name.partition(".")[0] not in ANEW and now.get(name) != then.get(name)
    ]
    for key, copy in OWN_CODE.items():
        if (found := own_code_of(given.method, key)) and _differ(found[0], place / copy):
            names.append(f"method.{key} ({found[0].name} has changed)")
    for one in given.bundles:
        if one.path and _differ(Path(one.path) / MANIFEST, place / "bundles" / one.class_name / MANIFEST):
            names.append(f"bundle ({Path(one.path).name} has been made anew)")
    return names


def is_finished(place: Path) -> bool:
    """Whether a run has come to its end, report and all."""
    try:
        with open(place / "events.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
            last = json.loads(file.read().splitlines()[-1])
        return last["event"] == "finished" and (place / "report.html").exists()
    except (OSError, ValueError, LookupError, TypeError):
        return False  # it is damaged: whoever goes on with it is told how


def how_far(place: Path) -> str:
    """ " at round 12 of 40", as far as that is known."""
    try:
        records = read_records(place / "metrics.jsonl")
        planned = parse_run_file((place / "run.toml").read_text(), where="run.toml").method.get("rounds")
    except (OSError, ValueError, EdgeflError):
        return ""
    return f" at round {records[-1].round if records else 0}" + (f" of {planned}" if planned else "")


def _settings(run: RunFile, place: Path) -> dict[str, Any]:
    """What a run file says, by "key" and "section.key"; one's own code as the copy in `place`, wherever it is."""
    method = run.method
    for key, copy in OWN_CODE.items():
        if own_code_of(method, key):
            method = with_own_code(method, key, place / copy)
    found: dict[str, Any] = {}
    for key, value in msgspec.to_builtins(msgspec.structs.replace(run, method=method)).items():
        found |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _differ(one: Path, other: Path) -> bool:
    """Whether both files are there, and not the same."""
    return one.is_file() and other.is_file() and one.read_bytes() != other.read_bytes()
