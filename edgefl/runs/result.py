"""What a run has come to, read from its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgefl.aggregator.record import Record
from edgefl.aggregator.store import read_records
from edgefl.files import read_bytes
from edgefl.tensors import Array, load_tensors


class Result:
    """A run's directory, `path`, and what is in it. `finished`: whether the run has come to its end."""

    def __init__(self, path: Path, *, finished: bool) -> None:
        self.path = path
        self.finished = finished

    def __repr__(self) -> str:
        return f"Result({str(self.path)!r}, rounds={self.rounds}, accuracy={self.accuracy})"

    @property
    def history(self) -> Sequence[Record]:
        """What is noted of each round, in order."""
        return read_records(self.path / "metrics.jsonl")

    @property
    def records(self) -> list[dict[str, Any]]:
        """The history as rows of plain values, each metric a column of its own: pandas.DataFrame(result.records)."""
        rows = []
        for record in self.history:
            row = msgspec.structs.asdict(record)
            rows.append({**row.pop("metrics"), **row})
        return rows

    @property
    def rounds(self) -> int:
        """How many rounds are done."""
        history = self.history
        return history[-1].round if history else 0

    @property
    def accuracy(self) -> float | None:
        """Of the last round on the evaluation data, 0 to 1; None where none was measured."""
        history = self.history
        return history[-1].accuracy if history else None

    @property
    def models(self) -> list[Path]:
        """Inference models in ONNX: features in, predictions out. None where only devices have whole models."""
        return [*self.path.glob("model.onnx"), *sorted(self.path.glob("models/*.onnx"))]

    def weights(self) -> dict[str, Array]:
        """The fused tensors at the end, by name."""
        path = self.path / "weights.safetensors"
        return load_tensors(read_bytes(path), path)

    def report(self) -> Path:
        """The page with curves and tables."""
        return self.path / "report.html"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a run went on, after everything was saved; `result` is what there is. A resume goes on.

    Where the result is finished, Ctrl-C came while its report was written, which `edgefl report` writes again.
    """

    def __init__(self, result: Result) -> None:
        what = "finished, but its report was not written" if result.finished else "everything is saved"
        super().__init__(f"stopped after {result.rounds} rounds; {what}, in {result.path}")
        self.result = result
