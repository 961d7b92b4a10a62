"""What a run has come to, read from its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgefl.aggregator.store import Record, read_records
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
    def records(self) -> Sequence[Record]:
        """A record for each round, in order."""
        return read_records(self.path / "metrics.jsonl")

    @property
    def rounds(self) -> int:
        """How many rounds are done."""
        records = self.records
        return records[-1]["round"] if records else 0

    @property
    def accuracy(self) -> float | None:
        """Of the last round on the evaluation data, 0 to 1; None where none was measured."""
        records = self.records
        accuracy: float | None = records[-1].get("accuracy") if records else None
        return accuracy

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
    """Ctrl-C while a run went on, after everything was saved; `result` is what there is. A resume goes on."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"stopped after {result.rounds} rounds; everything is saved in {result.path}")
        self.result = result
