"""Which models become programs, and where these compute what PyTorch computed: every model in every runtime.

Exports are kept in build/coverage/ under a hash of the sources, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import runtimes
import torch
from coverage_page import MISSING, THIRD_OPINION, TITLES, page
from harness import Row, Target, finish, options, versions
from runtimes import RUNTIMES, Answer, Missing, Runtime
from torch import nn

from edgefl.bundle import read
from edgefl.errors import EdgeflError
from edgefl.files import write_atomic
from edgefl.manifest import PORTABLE
from edgefl.training_artifacts import ENGINE
from edgefl_exporter import SGD, Adam, Group, export
from edgefl_exporter.programs.losses import LOSSES
from edgefl_exporter.zoo import ZOO

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "coverage"
LAYERS = ROOT / "tests" / "exporter" / "test_layers.py"
TOLERANCE = 1e-4
PROCESSES = 2


# What `export` can do with a model, each tried on a small one.
OPTIONS: dict[str, dict[str, Any]] = {
    "momentum, weight decay": {"optimizer": SGD(momentum=0.9, weight_decay=1e-3)},
    "Nesterov": {"optimizer": SGD(momentum=0.9, nesterov=True)},
    "Adam": {"optimizer": Adam()},
    "AdamW": {"optimizer": Adam(weight_decay=1e-2, decoupled=True)},
    "clipping": {"clip_norm": 0.1},
    "parameter groups": {"groups": (Group(("*.bias",), learning_rate=2.0),)},
    "proximal term": {"proximal": 0.1},
    "micro-batches": {"micro_batches": 2},
    "fixed batch": {"batch": 8},
    "head only": {"train": ("4.*",)},
    "LoRA": {"lora": 2},
    "gradient program": {"programs": ("gradient",)},
    # cross_entropy is in every other row, next_token in the zoo
    **{f"loss {name}": {"loss": name} for name in LOSSES if name not in ("cross_entropy", "next_token")},
}


@dataclass(frozen=True)
class Subject:
    """One row: a model of the zoo, a net around one layer, or an option of `export`."""

    kind: str
    name: str

    @property
    def path(self) -> Path:
        """Where its bundle is kept."""
        return _kept() / f"{self.kind}-{''.join(c if c.isalnum() else '-' for c in self.name)}.bundle"

    @property
    def record(self) -> Path:
        return self.path.with_suffix(".json")


@dataclass(frozen=True)
class Exported:
    """What became of one model: figures of its bundle, or why there is none."""

    refused: str = ""
    cpu_s: float | None = None
    parameters: int | None = None
    train_bytes: int | None = None
    parity: float | None = None
    third: float | None = None
    third_refused: str = ""
    training_refused: str = ""


@dataclass(frozen=True)
class Column:
    """What one runtime answered for each subject that has a bundle; `missing` says why it could not be asked."""

    name: str
    answers: dict[Subject, Answer] = field(default_factory=dict)
    missing: str = ""
    engine: str = PORTABLE


@click.command()
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Also write the tables as Markdown, to this file.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(TITLES)), help="Only these; default: all.")
@click.option("--again", is_flag=True, help="Forget what was kept of these sources.")
@options
def main(out: Path | None, kinds: tuple[str, ...], again: bool, form: str, quick: bool) -> None:
    """Export every model of the zoo and every layer net, and replay each in every runtime that can be had.

    Errors are relative: |runtime - torch| / |torch|, norms of whole tensors, the worst output of the worst program.

    Example: python bench/coverage.py -o docs/coverage.md
    """
    if again:
        shutil.rmtree(_kept(), ignore_errors=True)
    subjects = [subject for subject in _subjects() if not kinds or subject.kind in kinds]
    asked = dict(RUNTIMES)
    if quick:
        subjects = [next(s for s in subjects if s.kind == kind) for kind in kinds or TITLES]
        asked = {"onnxruntime": RUNTIMES["onnxruntime"]}
    exported = _export_all(subjects, 1 if quick else PROCESSES)
    bundles = [subject for subject in subjects if not exported[subject].refused]
    with ThreadPoolExecutor(PROCESSES) as pool:
        columns = list(pool.map(lambda item: _column(*item, bundles), asked.items()))
    rows = [_row(subject, made, columns) for subject, made in exported.items()]
    if out is not None:
        write_atomic(out, page(rows, {column.name: column.missing for column in columns}).encode())
        _tell(f"wrote {out}")
    if form == "text":
        rows = [row | {"notes": "; ".join(f"{name}: {why}" for name, why in row["notes"].items())} for row in rows]
    finish("coverage", rows, list(_targets(exported, columns)), form)


def _subjects() -> Iterator[Subject]:
    yield from (Subject("zoo", name) for name in ZOO)
    yield from (Subject("layer", name) for name in _layers())
    yield from (Subject("option", name) for name in OPTIONS)


def _layers() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """The nets of the layer tests: name -> a function that makes it, and the shape of its input."""
    spec = importlib.util.spec_from_file_location("test_layers", LAYERS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = module.LAYERS
    return found


def _export_all(subjects: list[Subject], processes: int) -> dict[Subject, Exported]:
    """What became of each subject, in their order."""
    new = [subject for subject in subjects if not subject.record.exists()]
    # Processes, since tracing holds Python's lock; spawned, since torch's threads do not survive a fork.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_warm_up) as pool:
        asked = {pool.submit(_export, subject): subject for subject in new}
        for number, done in enumerate(as_completed(asked), 1):
            subject, made = asked[done], done.result()
            said = made.refused or f"{made.cpu_s:.1f} s, parity {made.parity:.1e}"
            _tell(f"{number} of {len(new)}: {subject.kind} {subject.name}: {said}")
    return {subject: Exported(**json.loads(subject.record.read_text())) for subject in subjects}


def _warm_up() -> None:
    """One export that nobody counts: the first in a process imports half of torch."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        export(nn.Linear(2, 2), torch.zeros(1, 2), out=Path(folder) / "m.bundle", name="m", programs=("predict",))


def _export(subject: Subject) -> Exported:
    """Export one subject; keeps the bundle and the result."""
    try:
        cpu_s, training_refused = _bundle_of(subject)
    except EdgeflError as error:
        result = Exported(refused=error.message)
    except Exception as error:  # a mistake of ours or of torch's: this row says so, the others go on
        result = Exported(refused=f"{type(error).__name__}: {_first_line(error)}")
    else:
        manifest = read(subject.path).manifest
        third, why = (None, "") if subject.kind == "option" else _third_opinion(subject.path)
        result = Exported(
            cpu_s=cpu_s,
            parameters=sum(t.size_bytes // 4 for t in manifest.state if t.role == "parameter"),
            train_bytes=next(iter(manifest.programs.values())).file.size_bytes,
            parity=max(program.parity.worst for program in manifest.programs.values()),
            third=third,
            third_refused=why,
            training_refused=training_refused,
        )
    write_atomic(subject.record, json.dumps(asdict(result)).encode())
    return result


def _bundle_of(subject: Subject) -> tuple[float, str]:
    """Write a subject's bundle: processor seconds, and why there are no files for onnxruntime-training in it."""
    if subject.kind == "zoo":
        entry = ZOO[subject.name]
        module, example = entry.make()
        make = partial(_timed, subject, module, example, loss=entry.loss)
        try:
            return make(target=ENGINE, training_python=runtimes.training_python()), ""
        except Missing:
            return make(), ""
        except EdgeflError as error:
            return make(), error.message
    torch.manual_seed(1)
    if subject.kind == "layer":
        build, shape = _layers()[subject.name]
        return _timed(subject, build(), torch.zeros(shape), optimizer=SGD(momentum=0.9), programs=("train",)), ""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5))
    return _timed(subject, net, torch.zeros(1, 1, 6, 6), **{"programs": ("train",), **OPTIONS[subject.name]}), ""


def _timed(subject: Subject, module: nn.Module, example: torch.Tensor, **settings: Any) -> float:
    """Export; the seconds of processor time, since what other processes do does not count."""
    start = time.process_time()
    export(module, example, out=subject.path, name=subject.name, **settings)
    return time.process_time() - start


def _third_opinion(path: Path) -> tuple[float | None, str]:
    """How far onnx-ad's gradient is from ours, or why there is none."""
    try:
        from third_opinion import Refused, disagreement
    except ImportError:
        return None, f"{MISSING}: onnx-ad is not installed"
    try:
        return disagreement(read(path)), ""
    except Refused as reason:
        return None, str(reason)
    except Exception as error:  # onnx-ad's own mistakes have no type in common
        return None, f"{type(error).__name__}: {_first_line(error)}"


def _column(name: str, bring: Callable[[], Runtime], subjects: list[Subject]) -> Column:
    """The runtime's answer for each subject; what was kept is not asked again."""
    try:
        runtime = bring()
    except Missing as reason:
        return Column(name, missing=str(reason))
    kept = _kept() / f"{''.join(c if c.isalnum() else '-' for c in runtime.name)}.json"
    if runtime.engine != PORTABLE:
        subjects = [s for s in subjects if runtime.engine in read(s.path).manifest.targets]
    known = json.loads(kept.read_text()) if kept.exists() else {}
    answers = {s: Answer(**known[s.path.name]) for s in subjects if s.path.name in known}
    new = [s for s in subjects if s not in answers]
    for few in (new[i : i + 8] for i in range(0, len(new), 8)):  # when stopped, at most these are asked again
        _tell(f"{runtime.name}: replaying {', '.join(s.name for s in few)}")
        answers |= zip(few, runtime.replay([s.path for s in few]), strict=True)
        known |= {s.path.name: asdict(answers[s]) for s in few}
        write_atomic(kept, json.dumps(known).encode())
    return Column(runtime.name, answers, engine=runtime.engine)


def _row(subject: Subject, made: Exported, columns: list[Column]) -> Row:
    """One row for people and for tools. A runtime's cell is its worst error; `notes` says why a cell is empty."""
    notes = {"export": made.refused, THIRD_OPINION: made.third_refused}
    row: Row = {
        "kind": subject.kind,
        "model": subject.name,
        "parameters": made.parameters,
        "train_bytes": made.train_bytes,
        "export_cpu_s": made.cpu_s,
        "parity": made.parity,
    }
    for column in columns:
        why = f"{MISSING}: {column.missing}" if column.missing else ""
        if column.engine == ENGINE:
            why = made.training_refused
        answer = column.answers.get(subject, Answer({}, why))
        row[column.name] = answer.worst if answer.errors else None
        notes[column.name] = answer.failed
    row[THIRD_OPINION] = made.third
    row["notes"] = {name: why for name, why in notes.items() if why}
    return row


def _targets(exported: dict[Subject, Exported], columns: list[Column]) -> Iterator[Target]:
    yield Target("models that do not export", sum(bool(made.refused) for made in exported.values()), 0)
    for column in columns:
        failed = column.missing or any(answer.failed for answer in column.answers.values())
        worst = None if failed else max((answer.worst for answer in column.answers.values()), default=None)
        yield Target(f"worst golden error, {column.name}", worst, TOLERANCE)
    thirds = [made.third for made in exported.values() if made.third is not None]
    if thirds:
        yield Target(f"worst gradient difference, {THIRD_OPINION}", max(thirds), TOLERANCE)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _kept() -> Path:
    """The folder for what these sources gave."""
    return KEPT / _sources()


@cache
def _sources() -> str:
    """A hash of everything that decides a result."""
    folders = ("edgefl", "exporter", "devices/web")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if "node_modules" not in path.parts]
    more = [LAYERS, Path(__file__), ROOT / "bench" / "third_opinion.py", runtimes.WORKER]
    try:
        training = str(runtimes.training_python())
    except Missing:
        training = ""
    digest = hashlib.sha256(json.dumps([versions(), training]).encode())
    for path in sorted([*(path for path in files if path.suffix in (".py", ".mjs", ".json")), *more]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
