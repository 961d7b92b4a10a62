"""What a training step makes a process grow by: measured in one of its own, driven as a device drives it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgefl.errors import EdgeflError, InputError
from edgefl.manifest import Program
from edgefl.shapes import example_inputs
from edgefl.tensors import Array

STEPS = 10


@dataclass(frozen=True)
class Growth:
    """Of a program's first steps.

    grown_bytes   the most resident memory less what the process had before its first step, with everything loaded
    step_s        the shortest step
    state_sha256  of the whole state after the last step
    is_finite     whether all of that state is
    runtime       name and version
    """

    grown_bytes: int
    step_s: float
    state_sha256: str
    is_finite: bool
    runtime: str


def measure(program: Program, data: bytes, state: Mapping[str, Array], batch: int, *, steps: int = STEPS) -> Growth:
    """Take steps on random examples in a new process. Raises InputError where the system does not tell memory."""
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("memory is measured on Linux", hint="export on Linux, or leave --memory out")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "program.onnx").write_bytes(data)
        (folder / "writes.json").write_text(json.dumps(program.writes))
        _save(folder / "state.npz", {name: state[name] for name in (*program.reads, *program.writes)})
        _save(folder / "inputs.npz", example_inputs(program, batch))
        command = [sys.executable, "-m", "edgefl_exporter.memory.growth_worker", place, str(steps)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise EdgeflError(f"steps of batch {batch} failed: {lines[-1]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return Growth(**said)


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    np.savez(path, allow_pickle=False, **arrays)
