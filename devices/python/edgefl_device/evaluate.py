"""Evaluates a state on held-out data, the way a device would."""

from __future__ import annotations

from collections.abc import Callable

from edgefl.bundle import Bundle
from edgefl.method import Task
from edgefl.tensors import Array
from edgefl_device.contract import fit_to_contract
from edgefl_device.dataset import Dataset
from edgefl_device.interpreter import perform
from edgefl_device.runtime import Runtime


def evaluator(
    bundle: Bundle, data: Dataset, *, batch_size: int, threads: int = 1
) -> Callable[[dict[str, Array]], dict[str, float]]:
    """A function: some state tensors, the others being the bundle's -> metrics of its `evaluate` program over `data`.

    Raises DataError when the data does not fit the bundle.
    """
    test = fit_to_contract(data, bundle.manifest.data, "held-out data")
    runtime = Runtime(bundle, threads=threads)
    task = Task(program="evaluate", feed="test", batch_size=batch_size)

    def evaluate(state: dict[str, Array]) -> dict[str, float]:
        runtime.load(state)
        return dict(perform(runtime, [task], {}, {"test": test}, device="aggregator").metrics)

    return evaluate
