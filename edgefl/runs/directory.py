"""The directory of a run: a new one, or that of the run to go on with."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from edgefl.errors import ConfigError, nearest
from edgefl.files import locked, make_folder, sync_directory
from edgefl.runs.about import write_about
from edgefl.runs.resuming import how_far, ignored, is_finished, resumed
from edgefl.runs.run_file import parse_run_file, read_run_file
from edgefl.runs.sections import RunFile

# False: a new run. True: the last one. AUTO: the last one where it is unfinished, else a new one, for a supervisor that
# always starts the same command. Else a run by its name or its directory.
Resume = bool | str | Path
AUTO = "auto"


@contextmanager
def run_directory(given: RunFile, *, resume: Resume, progress: Callable[[str], None]) -> Iterator[tuple[RunFile, Path]]:
    """The run file to carry out and its directory, which nobody else uses meanwhile.

    With `resume` those of a run of that name; see `resuming.resumed` for what may be given anew; what else the file
    says differently is told. Without, a run that was left unfinished is told, and a new one that never became a run
    (it has no open round) is removed. Raises ConfigError where there is none to resume, or another process carries it.
    """
    runs = Path(given.runs)
    unfinished = [place for place in _runs_of(runs, given.name) if not is_finished(place)]
    if resume == AUTO:
        resume = unfinished[-1] if unfinished else False
    new = resume is False
    if new:
        if unfinished:
            progress(_left(unfinished))
        place, config = _new(runs, given.name), given
    else:
        place = _found(runs, given.name, resume)
        config = resumed(read_run_file(place / "run.toml"), given)
        saved = parse_run_file((place / "run.toml").read_text(), where=str(place / "run.toml"))
        if changed := ignored(saved, given, place):
            progress(f"the run goes on as it began; not taken from the run file: {', '.join(changed)}")
    try:
        with _held(place):
            write_about(place)
            yield config, place
    except BaseException:
        if new and not (place / "open.json").exists():
            shutil.rmtree(place, ignore_errors=True)
        raise


def _new(runs: Path, name: str) -> Path:
    """A new directory, ours alone: of two runs that begin within a second, one is called after a later one."""
    make_folder(runs)
    now_s = time.time()
    while True:
        place = runs / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now_s))}"
        try:
            place.mkdir()
            sync_directory(runs)
            return place
        except FileExistsError:
            now_s += 1


def _runs_of(runs: Path, name: str) -> list[Path]:
    """The directories of a name's runs, in the order in which they began."""
    ours = re.compile(re.escape(name) + r"-\d{8}-\d{6}")
    return sorted(p.parent for p in runs.glob("*/run.json") if ours.fullmatch(p.parent.name))


def _found(runs: Path, name: str, resume: Resume) -> Path:
    """The directory of the run to go on with. Raises ConfigError."""
    known = _runs_of(runs, name)
    if isinstance(resume, bool):
        if not known:
            raise ConfigError(f"no run of {name!r} in {runs} to resume", hint="start one without --resume")
        return known[-1]
    for place in (runs / resume, Path(resume)):
        if (place / "run.json").exists():
            theirs = read_run_file(place / "run.toml").name
            if theirs != name:
                raise ConfigError(f"{place} is a run of {theirs!r}; the run file is of {name!r}")
            return place
    raise ConfigError(
        f"no run {str(resume)!r} in {runs} to resume", hint=nearest(str(resume), [p.name for p in reversed(known)])
    )


def _held(place: Path) -> AbstractContextManager[None]:
    busy = ConfigError(f"another process carries the run {place}", hint="stop it first, or start a new run")
    return locked(place / "lock", busy)


def _left(unfinished: Sequence[Path]) -> str:
    """What to say beside a new run of those that were left before their end."""
    place, far = unfinished[-1], how_far(unfinished[-1])
    more = f" (and {len(unfinished) - 1} before it)" if len(unfinished) > 1 else ""
    try:
        with _held(place):
            return f"{place} is unfinished{far}{more}; this is a new run. To go on with that one: --resume {place.name}"
    except ConfigError as busy:
        return f"{busy.message}; this is a new one"
