"""Which classes a model takes for which, on data that the aggregator has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgefl.bundle import Bundle
from edgefl.manifest import Manifest
from edgefl.method import Task
from edgefl.tensors import Array
from edgefl_device.data.contract import fit_all
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import perform

PREDICT = "predict"
MOST_CLASSES = 1000  # a matrix of more is a million numbers, and nobody looks at it
AT_ONCE = 4096  # examples whose predictions are held

Matrix = npt.NDArray[np.int64]


def can_confuse(manifest: Manifest) -> bool:
    """Whether the bundle predicts one class of not too many for each example."""
    return _logits_of(manifest) is not None


def confusion(bundle: Bundle, data: Dataset, state: Mapping[str, Array], *, batch_size: int) -> Matrix:
    """[true class, class that it was taken for]: how many examples, labels that are ignored left out.

    `state`: some tensors, the others being the bundle's. Raises DataError when the data does not fit the bundle.
    """
    manifest = bundle.manifest
    classes, logits = manifest.data.classes, _logits_of(manifest)
    assert classes is not None and logits is not None
    fitted, _ = fit_all({"data": data}, manifest.data)
    examples = fitted["data"]
    runtime = Runtime(bundle)
    runtime.load(dict(state))
    task = Task(
        program=PREDICT, feed="test", batch_size=manifest.program(PREDICT).fixed_batch or batch_size, send=(logits,)
    )
    matrix = np.zeros((classes, classes), np.int64)
    for start in range(0, len(examples), AT_ONCE):
        part = examples.take(np.arange(start, min(start + AT_ONCE, len(examples))))
        taken = perform(runtime, [task], {}, {"test": part}, device="aggregator").tensors[logits].argmax(1)
        known = part.labels != manifest.data.ignored_label
        np.add.at(matrix, (part.labels[known], taken[known]), 1)
    return matrix


def _logits_of(manifest: Manifest) -> str | None:
    """The output of `predict` that has a number for each class; None where there is none."""
    classes, program = manifest.data.classes, manifest.programs.get(PREDICT)
    if program is None or classes is None or classes > MOST_CLASSES or manifest.data.labels:
        return None
    return next((one.name for one in program.outputs if one.shape[1:] == (classes,)), None)
