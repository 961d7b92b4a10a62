"""The folder of what a device must not forget: what is in it, what a kill inside a write has left, and what is old.

lock, life.json                             which process has it, and which of the device's lives that is: `life.py`
runs.json                                   the runs that have a bundle here, and which of them are finished
RUN.journal                                 private state and last reply: `journal.py`
RUN.epoch, RUN.failed                       which aggregator counts: `epochs.py`; an ask that failed: `failures.py`
RUN.safetensors                             its model at the end of a run
RUN.kept/BUFFER/ROUND.safetensors           buffers of examples: `kept.py`
packet-limits.json                          what brokers take that do not say so: `edgefl/packet_limit.py`
bundles/SHA256/...                          bundles, as their manifests name the files: `download.py`
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgefl.files import from_json, sweep, write_atomic
from edgefl.manifest import MAX_DEPTH
from edgefl.protocol import Name, Sha256

WRITTEN = (
    *("life.json", "runs.json", "packet-limits.json", "*.journal", "*.epoch", "*.failed", "*.safetensors"),
    "*.kept/*/*.safetensors",
    *("/".join(("bundles", "*", *["*"] * depth)) for depth in range(1, MAX_DEPTH + 1)),
)


def sweep_state(folder: Path) -> int:
    """Remove the temporaries that a killed process left in a state folder; how many. The caller holds its lock."""
    return sweep(folder, WRITTEN)


class _Run(msgspec.Struct, frozen=True):
    name: Name
    bundle: Sha256  # of its manifest
    finished: bool = False


@dataclass(frozen=True)
class Runs:
    """The runs of a state folder. The caller holds its lock.

    A run that is not finished stays whole, however old: its journal may hold private state that is nowhere else. So
    does one that this list does not know.
    """

    folder: Path

    def begin(self, name: str, bundle: str) -> None:
        """This device takes part in a run with this bundle, perhaps again."""
        run = _Run(name, bundle)
        if run not in (runs := self._read()):
            self._write([*(other for other in runs if other.name != name), run])

    def finish(self, name: str) -> None:
        """The run's aggregator has said that it is over."""
        runs = self._read()
        mine = [_Run(run.name, run.bundle, finished=True) for run in runs if run.name == name]
        self._write([*(run for run in runs if run.name != name), *mine])

    def sweep(self, keep: int) -> list[str]:
        """Remove what finished runs have left, but for the last `keep` that finished, and bundles that no run which
        stays has; the names of those runs."""
        runs = self._read()
        finished = [run for run in runs if run.finished]
        old = finished[: max(0, len(finished) - keep)]
        stay = [run for run in runs if run not in old]
        for run in old:
            for ending in ("journal", "epoch", "failed", "safetensors"):
                (self.folder / f"{run.name}.{ending}").unlink(missing_ok=True)
            shutil.rmtree(self.folder / f"{run.name}.kept", ignore_errors=True)
        for bundle in {run.bundle for run in old} - {run.bundle for run in stay}:
            shutil.rmtree(self.folder / "bundles" / bundle[:16], ignore_errors=True)
        if old:
            self._write(stay)
        return [run.name for run in old]

    @property
    def _path(self) -> Path:
        return self.folder / "runs.json"

    def _read(self) -> list[_Run]:
        try:
            return from_json(self._path.read_bytes(), list[_Run])
        except (OSError, ValueError):
            return []  # never written, or damaged: then nothing that is here is swept

    def _write(self, runs: list[_Run]) -> None:
        write_atomic(self._path, msgspec.json.encode(runs))
