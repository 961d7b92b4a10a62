"""How long an export takes, for the first time and where the same was made before; each in a process of its own.

    python bench/export_time.py

Processor seconds (of all cores, the process's own) beside wall seconds, which other work on the machine makes longer.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from harness import Row, Target, finish, options

EDGEFL = ["-m", "edgefl"]
# What `edgefl run examples/codream.toml` does before its rounds: five bundles with nine programs each.
PREPARE = """
import sys
from pathlib import Path
from edgefl.runs.prepare import prepare
from edgefl.runs.run_file import read_run_file
prepare(read_run_file(Path(sys.argv[1])), Path(sys.argv[2]), print)
"""
EXAMPLE = Path(__file__).parents[1] / "examples" / "codream.toml"

# What is made, and the most wall seconds it may take.
LIGHT = {"zoo": 1.0, "export nothere.py:model": 1.0}
EXPORTS = {"zoo:digits": 3.0, "zoo:resnet20": 8.0, "zoo:mobilenetv2": 10.0, "examples/codream.toml": 30.0}


@click.command()
@options
def main(form: str, quick: bool) -> None:
    """How long an export takes, for the first time and where the same was made before."""
    rows: list[Row] = []
    targets: list[Target] = []

    def measure(what: str, when: str, bound_s: float, command: list[str], cache: str) -> None:
        wall_s, processor_s = timed(command, cache)
        rows.append({"what": what, "when": when, "wall_s": wall_s, "processor_s": processor_s})
        targets.append(Target(f"{what}{when and ', ' + when}: seconds", wall_s, bound_s))

    for words, bound_s in LIGHT.items():
        measure(words, "", bound_s, [*EDGEFL, *words.split()], "")
    for what, bound_s in {} if quick else EXPORTS.items():
        with tempfile.TemporaryDirectory() as folder:
            for when in ("first", "made before"):
                out = f"{folder}/{when}"
                export = [*EDGEFL, "export", what, "-o", out]
                command = ["-c", PREPARE, str(EXAMPLE), out] if what.endswith(".toml") else export
                measure(what, when, bound_s, command, f"{folder}/cache")
    finish("export_time", rows, targets, form)


def timed(command: list[str], cache: str) -> tuple[float, float]:
    """Wall and processor seconds of a Python process."""
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | {"EDGEFL_CACHE": cache}, capture_output=True, text=True
    )
    wall_s, after = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 3), done.stderr  # 3: there is no nothere.py
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
