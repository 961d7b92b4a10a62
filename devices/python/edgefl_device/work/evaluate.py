"""Evaluates a state on held-out data, the way a device would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from edgefl.bundle import Bundle
from edgefl.errors import DataError
from edgefl.method import Task
from edgefl.names import GRADIENT
from edgefl.tensors import Array, Tensors
from edgefl_device.data.contract import fit_all
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import perform

HELD_OUT = "held-out data"  # what errors call them


def evaluator(
    bundle: Bundle,
    data: Dataset,
    *,
    batch_size: int,
    threads: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> Callable[[dict[str, Array]], dict[str, float]]:
    """A function: some state tensors, the others being the bundle's -> metrics of its `evaluate` program over `data`.

    Raises DataError when the data does not fit the bundle.
    """
    fitted, note = fit_all({HELD_OUT: data}, bundle.manifest.data)
    if note:
        progress(f"evaluation data: {note}")
    test = fitted[HELD_OUT]
    runtime = Runtime(bundle, threads=threads)
    task = Task(program="evaluate", feed="test", batch_size=batch_size)

    def evaluate(state: dict[str, Array]) -> dict[str, float]:
        runtime.load(state)
        return dict(perform(runtime, [task], {}, {"test": test}, device="aggregator").metrics)

    return evaluate


def set_aside(data: Dataset, count: int, *, seed: int) -> tuple[Dataset, Dataset]:
    """`count` examples drawn by `seed`, and the others. Raises DataError when there would be no others."""
    if count >= len(data):
        raise DataError(
            f"{count} held-out examples of {len(data)} in the evaluation data leave none to evaluate on",
            hint="set a smaller held_out in [evaluate]",
        )
    order = np.random.default_rng(seed).permutation(len(data))
    return data.take(order[:count]), data.take(np.sort(order[count:]))


class HeldOut:
    """A bundle's loss and its gradient over held-out examples, as functions of shared tensors by fusion group.

    `settings`: of both programs, in place of the bundle's own.
    Both raise EdgeflError where a result is not finite. Tensors that the bundle does not share are passed over.
    Raises DataError when the data does not fit the bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        data: Dataset,
        *,
        batch_size: int,
        settings: Mapping[str, float] = MappingProxyType({}),
        threads: int = 1,
    ) -> None:
        self._feeds = {"test": fit_all({HELD_OUT: data}, bundle.manifest.data)[0][HELD_OUT]}
        self._runtime = Runtime(bundle, threads=threads)
        self._map = bundle.manifest.fusion_map()
        gradient = bundle.manifest.program("gradient")
        self._evaluate = Task(program="evaluate", feed="test", batch_size=batch_size, settings=dict(settings))
        self._differentiate = Task(
            program="gradient",
            feed="test",
            batch_size=min(batch_size, gradient.fixed_batch or batch_size),
            settings=dict(settings),
            send=tuple(o.name for o in gradient.outputs if o.name.startswith(GRADIENT)),
        )

    def loss(self, tensors: Tensors) -> float:
        """The mean loss over the held-out examples."""
        self._load(tensors)
        return perform(self._runtime, [self._evaluate], {}, self._feeds, device="aggregator").metrics["evaluate.loss"]

    def gradient(self, tensors: Tensors) -> dict[str, Array]:
        """The gradient of the mean loss by each shared tensor that trains."""
        self._load(tensors)
        outcome = perform(self._runtime, [self._differentiate], {}, self._feeds, device="aggregator")
        found = {group: GRADIENT + tensor.name for group, tensor in self._map.items()}
        return {group: outcome.tensors[name] for group, name in found.items() if name in outcome.tensors}

    def _load(self, tensors: Tensors) -> None:
        self._runtime.load({self._map[group].name: value for group, value in tensors.items() if group in self._map})
