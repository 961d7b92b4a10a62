"""edgefl: federated learning on phones and boards. Read `edgefl.method` first.

    bundle = edgefl.export(model, example_input, out="digits.bundle", name="digits")
    result = edgefl.run("digits.toml", on_round=lambda record: print(record.round, record.accuracy))

The verbs of the command line as functions: `export`, `run`, `aggregate`, `device`; and `simulate`, a run in this
process. Each is imported when it is first used, so that a device needs no torch. They print nothing; docs/python.md has
more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgefl.aggregator.record import Record as Record
    from edgefl.bundle import Bundle as Bundle
    from edgefl.bundle import read as read_bundle  # noqa: F401 - public
    from edgefl.runs.result import Interrupted as Interrupted
    from edgefl.runs.result import Result as Result
    from edgefl.runs.run import aggregate as aggregate
    from edgefl.runs.run import run as run
    from edgefl.runs.sections import RunFile as RunFile
    from edgefl.runs.simulate import Simulated as Simulated
    from edgefl.runs.simulate import simulate as simulate
    from edgefl_device.device import device as device
    from edgefl_exporter.build import export as export

__version__ = "0.1.0"

# name -> where it is, and what it is called there
_PUBLIC = {
    "export": ("edgefl_exporter", "export"),
    "run": ("edgefl.runs.run", "run"),
    "aggregate": ("edgefl.runs.run", "aggregate"),
    "device": ("edgefl_device.device", "device"),
    "simulate": ("edgefl.runs.simulate", "simulate"),
    "read_bundle": ("edgefl.bundle", "read"),
    "Bundle": ("edgefl.bundle", "Bundle"),
    "RunFile": ("edgefl.runs.sections", "RunFile"),
    "Record": ("edgefl.aggregator.record", "Record"),
    "Result": ("edgefl.runs.result", "Result"),
    "Simulated": ("edgefl.runs.simulate", "Simulated"),
    "Interrupted": ("edgefl.runs.result", "Interrupted"),
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgefl' has no attribute {name!r}")
    module, called = _PUBLIC[name]
    return getattr(import_module(module), called)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
