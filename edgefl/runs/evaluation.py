"""What a run's state is worth on data of the aggregator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgefl.aggregator.classes import DeviceClass
from edgefl.aggregator.serve import Measure
from edgefl.errors import ConfigError
from edgefl.method import Method
from edgefl.runs.questions import has_models, models_of, personal_of
from edgefl.runs.sections import EvaluateSection, RunFile
from edgefl.tensors import Array, Tensors

if TYPE_CHECKING:
    from edgefl_device.data import Dataset


def evaluator_of(
    config: RunFile,
    classes: Sequence[DeviceClass],
    method: Method,
    progress: Callable[[str], None] = lambda line: None,
) -> Measure | None:
    """A function: the tensors of a method's state -> metrics over the evaluation data, the mean over its models.

    `progress` is told what is odd about the data. None where the run evaluates nothing, or the state holds no model.
    Raises ConfigError where only devices have whole models.
    """
    if config.evaluate is None:
        return None
    if not has_models(method):
        for one in classes:
            if own := personal_of(method, one):
                raise ConfigError(
                    f"[evaluate]: only a device has its whole model: it keeps {own[0]!r} for itself",
                    hint="set evaluate = true in [method] instead: devices report on their own test data",
                )
    models = models_of(method, classes, method.start().tensors)
    if not models:
        return None
    from edgefl_device.work.evaluate import evaluator

    data, _ = evaluation_data(config.evaluate, config.seed)
    size = config.evaluate.batch_size
    measures = {
        model.name: _changed_only(evaluator(model.bundle, data, batch_size=size, progress=progress)) for model in models
    }

    def evaluate(tensors: Tensors) -> dict[str, float]:
        found = [measures[model.name](model.state) for model in models_of(method, classes, tensors)]
        return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}

    return evaluate


def _changed_only(measure: Callable[[dict[str, Array]], dict[str, float]]) -> Callable[[Tensors], dict[str, float]]:
    """`measure`, which is not asked again while a model's tensors are the very same: in most rounds of dreams."""
    before: dict[str, Array] = {}
    found: dict[str, float] = {}

    def measure_changed(state: Tensors) -> dict[str, float]:
        nonlocal before, found
        if before.keys() != state.keys() or any(state[name] is not before[name] for name in state):
            before, found = dict(state), measure(dict(state))
        return found

    return measure_changed


def evaluation_data(section: EvaluateSection, seed: int) -> tuple[Dataset, Dataset]:
    """The data set's test part where it has one: what is evaluated on, and what is held out for learned weights."""
    from edgefl_device.sources import read_splits
    from edgefl_device.work.evaluate import set_aside

    splits = read_splits(section.data, label=section.label)
    held_out, rest = set_aside(splits.train if splits.test is None else splits.test, section.held_out, seed=seed)
    return rest, held_out
