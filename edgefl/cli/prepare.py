"""What a run needs before it begins: the bundles of its device classes, its method checked against them, and what
evaluates the fused model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgefl import classes as device_classes
from edgefl.asks import check_ask, check_sends, personal
from edgefl.bundle import Bundle, read
from edgefl.classes import DeviceClass, check_classes, in_state, initial, parse_condition, whole_state
from edgefl.cli.export import export_from
from edgefl.cli.output import tell
from edgefl.config import BundleSection, RunFile, make_method
from edgefl.errors import ConfigError
from edgefl.method import Ask, Method
from edgefl.serve import Evaluate
from edgefl.tensors import Array


def classes_of(config: RunFile, place: Path) -> list[DeviceClass]:
    """The run's device classes. Raises ConfigError where their bundles disagree about what they share."""
    classes = [
        DeviceClass(
            name=one.class_name,
            bundle=_bundle_of(one, place / "bundles" / one.class_name, config.seed),
            condition=parse_condition(one.condition) if one.condition else device_classes.Condition(),
            devices=one.devices,
            settings=one.settings,
        )
        for one in config.bundles
    ]
    check_classes(classes)
    return classes


def _bundle_of(section: BundleSection, inside: Path, seed: int) -> Bundle:
    """The bundle, in the run directory: exported there, or copied, so that a resume needs nothing else."""
    if inside.exists():
        return read(inside)
    if section.path is not None:
        bundle = read(section.path)
        shutil.copytree(bundle.path, inside)
        return read(inside)
    assert section.model is not None
    options = {"seed": seed, **section.options}
    where = f"[[bundle]] {section.class_name!r} options"
    return export_from(section.model, options, inside, section.class_name, tell, where=where)


def method_of(config: RunFile, classes: Sequence[DeviceClass]) -> Method:
    """The run's method. Raises ConfigError, BundleError for one whose first ask a class of devices cannot do."""
    method = make_method(config, initial(classes), where="run file")
    first = method.ask(method.start())
    if first is not None:
        for one in classes:
            check_ask(first, one.bundle.manifest)
        check_sends(first, [one.bundle.manifest for one in classes])
    return method


def personal_of(method: Method, one: DeviceClass, program: str) -> list[str]:
    """What of a program's state only a device has: see `asks.personal`."""
    state = method.start()
    first = method.ask(state)
    return personal(first or Ask((), {}), one.bundle.manifest, program, state.tensors)


def evaluator_of(config: RunFile, classes: Sequence[DeviceClass], method: Method) -> Evaluate | None:
    """A function: fused tensors -> metrics over the held-out data, of every class together.

    Raises ConfigError where only devices have whole models.
    """
    if config.evaluate is None:
        return None
    from edgefl_device.evaluate import evaluator
    from edgefl_device.sources import read_splits

    for one in classes:
        if own := personal_of(method, one, "evaluate"):
            raise ConfigError(
                f"[evaluate]: only a device has its whole model: it keeps {own[0]!r} for itself",
                hint="set evaluate = true in [method] instead: devices report on their own test data",
            )
    splits = read_splits(config.evaluate.data)
    held_out = splits.test if splits.test is not None else splits.train
    size = config.evaluate.batch_size
    evaluators = [(one.bundle.manifest, evaluator(one.bundle, held_out, batch_size=size)) for one in classes]

    def evaluate(tensors: Mapping[str, Array]) -> dict[str, float]:
        found = [measure(in_state(manifest, tensors)) for manifest, measure in evaluators]
        return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}

    return evaluate


def write_models(method: Method, classes: Sequence[DeviceClass], tensors: Mapping[str, Array], place: Path) -> None:
    """An inference model of each class whose model is not the devices' alone: model.onnx, or models/CLASS.onnx."""
    from edgefl.inference import write_model

    for one in classes:
        if not personal_of(method, one, "predict"):
            path = place / "model.onnx" if len(classes) == 1 else place / "models" / f"{one.name}.onnx"
            path.parent.mkdir(exist_ok=True)
            write_model(one.bundle, whole_state(one.bundle, tensors), path)
