"""What every benchmark shares: its options, the machine and versions beside the figures, a table or one JSON object."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A figure to reach. `value` is what was measured, `bound` the most it may be (the least, if `at_least`)."""

    name: str
    value: float | None
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def options(function: Callable[..., None]) -> Callable[..., None]:
    """`--format` and `--quick`, which every benchmark has."""
    function = click.option("--quick", is_flag=True, help="A smoke run of seconds; its figures mean nothing.")(function)
    return click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")(function)


def data_option(function: Callable[..., None]) -> Callable[..., None]:
    """`--data DIR`, for benchmarks that read a data set."""
    folder = click.Path(path_type=Path, file_okay=False, exists=True)
    return click.option("--data", type=folder, required=True, help="Folder of the data set.")(function)


def machine() -> dict[str, Any]:
    """The processor, how many cores we may use, and the system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": model, "cores": cores, "system": platform.system(), "python": platform.python_version()}


def versions() -> dict[str, str]:
    """Versions of the packages that the figures depend on, where installed."""
    found = {}
    for name in ("edgefl", "torch", "onnxruntime", "onnx", "numpy", "paho-mqtt"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def finish(name: str, rows: Sequence[Row], targets: Sequence[Target], form: str) -> None:
    """Print the result: a table for people, or one JSON object."""
    if form == "json":
        result = {
            "name": name,
            "machine": machine(),
            "versions": versions(),
            "rows": list(rows),
            "targets": [asdict(t) | {"met": t.met} for t in targets],
        }
        print(json.dumps(result))
        return
    console = Console() if sys.stdout.isatty() else Console(width=200)
    table = Table(title=name, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, justify="right" if isinstance(rows[0][column], (int, float)) else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)
    for target in targets:
        relation = ">=" if target.at_least else "<="
        verdict = "met" if target.met else "MISSED"
        console.print(f"{verdict}: {target.name} {_cell(target.value)} (to be {relation} {_cell(target.bound)})")
    print("machine:", ", ".join(f"{k} {v}" for k, v in machine().items()))
    print("versions:", ", ".join(f"{k} {v}" for k, v in versions().items()))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
