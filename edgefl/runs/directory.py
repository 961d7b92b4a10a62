"""The directory of a run: a new one, or that of the run to go on with."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from edgefl.errors import ConfigError
from edgefl.files import locked
from edgefl.runs.about import write_about
from edgefl.runs.run_file import read_run_file, resumed
from edgefl.runs.sections import RunFile


@contextlib.contextmanager
def run_directory(given: RunFile, *, resume: bool) -> Iterator[tuple[RunFile, Path]]:
    """The run file to carry out and its directory, which nobody else uses meanwhile.

    With `resume` those of the last run of that name; see `run_file.resumed` for what may be given anew. What never
    became a run is removed. Raises ConfigError where there is none to resume, or another process carries it.
    """
    config = given
    runs = Path(config.runs)
    place = runs / f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if resume:
        ours = re.compile(re.escape(config.name) + r"-\d{8}-\d{6}")
        known = sorted(p for p in runs.glob("*/run.json") if ours.fullmatch(p.parent.name))
        if not known:
            raise ConfigError(f"no run of {config.name!r} in {runs} to resume", hint="start one without --resume")
        place = known[-1].parent
        config = resumed(read_run_file(place / "run.toml"), given)
    busy = ConfigError(f"another process carries the run {place}", hint="stop it first, or start a new run")
    try:
        with locked(place / "lock", busy):
            write_about(place)
            yield config, place
    except BaseException:
        if not resume and not (place / "open.json").exists():
            shutil.rmtree(place, ignore_errors=True)
        raise
