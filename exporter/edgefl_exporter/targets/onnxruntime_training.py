"""Files for onnxruntime-training: made from the proven programs, then proven there, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefl import training_artifacts
from edgefl.errors import EdgeflError, InputError, LoweringError
from edgefl.manifest import Parity, Program
from edgefl.replay import Runs
from edgefl.tensors import Array, Tensors, load_tensors, save_tensors
from edgefl.training_artifacts import (
    ENGINE,
    EVAL,
    FILES,
    FROZEN,
    INSTALL,
    OPTIMIZER,
    TRAINED,
    TRAINING,
    ProgramOf,
)
from edgefl_exporter.lowering.check import check_as_device
from edgefl_exporter.targets.training_graphs import PORTABLE, as_stored, eval_model, optimizer_model, training_model

PROGRAMS = ("train", "evaluate", "predict")
HINT = f"give --training-python, the interpreter of another environment: {INSTALL}"


@dataclass(frozen=True)
class Made:
    """File name -> content, and the proof of each program that they run."""

    files: dict[str, bytes]
    parity: dict[str, Parity]


def check(python: Path | None, programs: Sequence[str]) -> Path:
    """The interpreter, before any work.

    Raises InputError when it cannot be used, LoweringError when a program that is needed is not wanted.
    """
    if missing := [name for name in PROGRAMS if name not in programs]:
        raise LoweringError(f"the target {ENGINE} needs the program {missing[0]!r}", hint=PORTABLE)
    if python is None:
        raise InputError(f"the target {ENGINE} needs an environment of its own", hint=HINT)
    try:
        done = subprocess.run([python, "-I", training_artifacts.__file__], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"{python} cannot be used: {error.strerror}", hint=HINT) from error
    if done.returncode:
        raise InputError(f"{python} cannot be used: {_last_line(done.stderr)}", hint=HINT)
    return python


def make(
    python: Path,
    entries: Mapping[str, Program],
    programs: Mapping[str, bytes],
    trained: Collection[str],
    weights: Tensors,
    proven: Callable[[str, Runs], Parity],
) -> Made:
    """The four files for a bundle's programs, each proven by `proven` as it runs in `python`'s environment.

    `trained`: the parameters among `weights`, the initial state, that the program `train` changes. Raises LoweringError
    for programs that cannot become these files, and what `proven` raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, data in _contents(programs, entries["train"].writes, trained, weights).items():
            (Path(folder) / name).write_bytes(data)
        with _started(python, Path(folder)) as worker:
            parity = {name: proven(name, ProgramOf(name, entries, worker.run, worker.runtime)) for name in PROGRAMS}
        return Made({name: (Path(folder) / name).read_bytes() for name in FILES}, parity)


def _contents(
    programs: Mapping[str, bytes], writes: Mapping[str, str], trained: Collection[str], weights: Tensors
) -> dict[str, bytes]:
    """The three graphs, and the tensors that the other process makes the checkpoint of."""
    stored = as_stored(weights, writes)
    graphs = {
        TRAINING: training_model(programs["train"], writes, trained, weights),
        EVAL: eval_model(programs["evaluate"], programs["predict"], stored),
        OPTIMIZER: optimizer_model(),
    }
    for name, data in graphs.items():
        check_as_device(data, engine=ENGINE, where=name)
    return {
        **graphs,
        TRAINED: save_tensors({name: stored[name] for name in trained}),
        FROZEN: save_tensors({name: value for name, value in stored.items() if name not in trained}),
    }


@contextmanager
def _started(python: Path, folder: Path) -> Iterator[_Worker]:
    """The process that makes the checkpoint and runs the files; see `edgefl.training_artifacts.main`."""
    log = folder / "log"
    command = [str(python), "-I", training_artifacts.__file__, str(folder)]  # -I: without PYTHONPATH
    with (
        open(log, "wb") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        worker = _Worker(process, log)
        about, _ = worker.answer()
        if "error" in about:
            raise LoweringError(f"{ENGINE} cannot load its files: {about['error']}", hint=PORTABLE)
        worker.runtime = about["runtime"]
        yield worker


class _Worker:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.runtime = ""
        self._process = process
        self._log = log

    def run(self, program: str, values: Tensors) -> dict[str, Array]:
        assert self._process.stdin is not None
        data = save_tensors(values)
        self._process.stdin.write(json.dumps({"program": program, "size": len(data)}).encode() + b"\n" + data)
        self._process.stdin.flush()
        about, tensors = self.answer()
        if "error" in about:
            raise LoweringError(f"{self.runtime} cannot run {program!r}: {about['error']}", hint=PORTABLE)
        return tensors

    def answer(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """The next answer. Raises EdgeflError, with the last that it said, when the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last = _last_line(self._log.read_text(errors="replace"))
            raise EdgeflError(f"the process that proves files for {ENGINE} has ended: {last}")
        about = json.loads(line)
        return about, load_tensors(self._process.stdout.read(about["size"]), "an answer of the other process")


def _last_line(log: str) -> str:
    """What a process said last."""
    return (log.strip().splitlines() or ["it ended"])[-1]
