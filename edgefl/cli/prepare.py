"""What a run needs before it begins: the bundles of its device classes, its method checked against them, and what
evaluates the fused model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgefl.aggregator import classes as device_classes
from edgefl.aggregator.checks import check_ask, check_sends, personal
from edgefl.aggregator.classes import DeviceClass, check_classes, in_state, initial, parse_condition, whole_state
from edgefl.aggregator.coordinator import RoundSettings
from edgefl.aggregator.fusion import Fusing, fusing, fusion_named
from edgefl.aggregator.learned import learning
from edgefl.aggregator.serve import Evaluate
from edgefl.aggregator.weights import LEARNED, load_rule
from edgefl.bundle import Bundle, Manifest, read
from edgefl.cli.export import export_from
from edgefl.cli.output import tell
from edgefl.errors import ConfigError
from edgefl.files import write_atomic
from edgefl.method import Ask, Method
from edgefl.methods.codream import CoDream
from edgefl.own_code import own
from edgefl.protocol import MAX_HEADER_BYTES, Announcement, BlobRef, devices_that_fit
from edgefl.results.inference import write_model
from edgefl.runs.run_file import BundleSection, EvaluateSection, ModelSection, RunFile, make_method
from edgefl.tensors import Array, save_tensors

if TYPE_CHECKING:
    from edgefl_device.work.student import Student


def classes_of(config: RunFile, place: Path) -> list[DeviceClass]:
    """The run's device classes. Raises ConfigError where their bundles disagree about what they share."""
    classes = [
        DeviceClass(
            name=one.class_name,
            bundle=_bundle_of(one, place / "bundles" / one.class_name, config.seed, one.class_name),
            condition=parse_condition(one.condition) if one.condition else device_classes.Condition(),
            devices=one.devices,
            settings=one.settings,
        )
        for one in config.bundles
    ]
    check_classes(classes)
    return classes


def _bundle_of(section: ModelSection, inside: Path, seed: int, name: str) -> Bundle:
    """The bundle, in the run directory: exported there, or copied, so that a resume needs nothing else."""
    if inside.exists():
        return read(inside)
    if section.path is not None:
        bundle = read(section.path)
        shutil.copytree(bundle.path, inside)
        return read(inside)
    assert section.model is not None
    options = {"seed": seed, **section.options}
    where = f"{'[[bundle]]' if isinstance(section, BundleSection) else '[student]'} {name!r} options"
    return export_from(section.model, options, inside, name, lambda line: tell(f"{name}: {line}"), where=where)


def student_of(config: RunFile, place: Path) -> Student | None:
    """The model that learns on the aggregator, where the run has one."""
    if config.student is None:
        return None
    from edgefl_device.work.student import Student

    return Student(_bundle_of(config.student, place / "student", config.seed, "student"))


def method_of(config: RunFile, classes: Sequence[DeviceClass], student: Student | None = None) -> Method:
    """The run's method. Raises ConfigError, BundleError for one whose first ask a class of devices cannot do."""
    method = make_method(config, initial(classes), where="run file", student=student)
    manifests = [one.bundle.manifest for one in classes]
    if isinstance(method, CoDream):
        _check_dreamers(method, manifests, config.round)
        asks = method.rehearse()
    else:
        first = method.ask(method.start())
        asks = () if first is None else (first,)
    kept = {task.keep.buffer for ask in asks for task in ask.tasks if task.keep is not None}
    for ask in asks:
        for manifest in manifests:
            check_ask(ask, manifest, kept=kept)
        check_sends(ask, manifests)
        check_names(ask, config.round)
    return method


def round_of(config: RunFile, method: Method) -> RoundSettings:
    """How the run's rounds are filled: with no more devices than its method was told that there are (SCAFFOLD's N)."""
    most = getattr(method, "devices", None)
    if most is None or most >= config.round.max_devices:
        return config.round
    if most < config.round.min_devices:
        raise ConfigError(
            f"[round] min_devices is {config.round.min_devices}, but the method is for {most} devices",
            hint="set devices in [method] to all that may ever be asked",
        )
    return msgspec.structs.replace(config.round, max_devices=most)


def check_names(ask: Ask, settings: RoundSettings) -> None:
    """Raise ConfigError where an announcement of this ask cannot name as many devices as the run takes."""
    header = Announcement(1, 0, 0, "0" * 16, settings.deadline_s, [], list(ask.tasks), BlobRef("0" * 64, 0))
    most = devices_that_fit(header, MAX_HEADER_BYTES)
    if most < settings.max_devices:
        raise ConfigError(
            f"[round] max_devices is {settings.max_devices}; an announcement of this method can name {most} devices",
            hint=f"set max_devices = {most} in [round]",
        )


def _check_dreamers(method: CoDream, manifests: Sequence[Manifest], settings: RoundSettings) -> None:
    """Raises ConfigError unless student and devices look at the same kind of examples, the student can do what devices
    do, and all devices are asked."""
    student = method.student.bundle.manifest
    if student.method != "codream":
        raise ConfigError("the student cannot dream", hint='add options = { method = "codream" } to [student]')
    if missing := sorted(method.initial.keys() - student.fusion_map().keys()):
        raise ConfigError(
            f"the student has no tensor {missing[0]!r}, which the bundles share",
            hint="export it with the options of [[bundle]]",
        )
    for manifest in manifests:
        for what in ("features", "dtype", "normalisation", "classes"):
            got, want = getattr(manifest.data, what), getattr(student.data, what)
            if got != want:
                raise ConfigError(
                    f"bundle {manifest.name!r} has {what} {got}; the student has {want}",
                    hint="devices and student dream together: export all for the same examples",
                )
    if settings.fraction < 1:
        raise ConfigError(
            f"[round] fraction is {settings.fraction:g}: a device that was not asked to warm up would dream untrained",
            hint="codream asks all devices: fraction = 1",
        )


def personal_of(method: Method, one: DeviceClass) -> list[str]:
    """What of its model only a device has: see `asks.personal`."""
    state = method.start()
    return personal(method.ask(state) or Ask((), {}), one.bundle.manifest, state.tensors)


def evaluator_of(config: RunFile, classes: Sequence[DeviceClass], method: Method) -> Evaluate | None:
    """A function: fused tensors -> metrics over the held-out data, of every class together, or of the student.

    Raises ConfigError where only devices have whole models.
    """
    if config.evaluate is None:
        return None
    from edgefl_device.work.evaluate import evaluator

    test, _ = _evaluation_data(config.evaluate, config.seed)
    size = config.evaluate.batch_size
    if isinstance(method, CoDream):
        if method.alone:
            return None  # the student learns nothing
        return _changed_only(evaluator(method.student.bundle, test, batch_size=size), method.student_in)
    for one in classes:
        if own := personal_of(method, one):
            raise ConfigError(
                f"[evaluate]: only a device has its whole model: it keeps {own[0]!r} for itself",
                hint="set evaluate = true in [method] instead: devices report on their own test data",
            )
    evaluators = [(one.bundle.manifest, evaluator(one.bundle, test, batch_size=size)) for one in classes]

    def evaluate(tensors: Mapping[str, Array]) -> dict[str, float]:
        found = [measure(in_state(manifest, tensors)) for manifest, measure in evaluators]
        return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}

    return evaluate


def _changed_only(
    measure: Callable[[dict[str, Array]], dict[str, float]], choose: Callable[[Mapping[str, Array]], dict[str, Array]]
) -> Evaluate:
    """`measure` of what `choose` takes of a method's tensors, which in most rounds is what it was."""
    before: dict[str, Array] = {}
    found: dict[str, float] = {}

    def evaluate(tensors: Mapping[str, Array]) -> dict[str, float]:
        nonlocal before, found
        now = choose(tensors)
        if not before or any(now[name] is not before[name] for name in now):
            before, found = now, measure(now)
        return found

    return evaluate


def fusing_of(config: RunFile, classes: Sequence[DeviceClass], place: Path) -> Fusing:
    """How replies are weighted and fused; a rule of somebody's own is kept in the run directory for a resume."""
    weight = str(config.method.get("weight", ""))
    if (found := own(weight)) is not None:
        file, function = found
        inside = place / "weights.py"
        if not inside.exists():
            if not file.is_file():
                raise ConfigError(f"weight rule {weight!r}: no file {file}", hint="its path is seen from the run file")
            write_atomic(inside, file.read_bytes())
        rule = load_rule(inside, function, f"{file.name}:{function}")
        return lambda ask: (fusion_named(ask.fusion), rule) if ask.weight == weight else fusing(ask)
    if weight == LEARNED and config.evaluate is not None:
        from edgefl_device.work.evaluate import HeldOut

        if len(classes) > 1:
            raise ConfigError(
                f"weight = {LEARNED!r} needs one bundle for all devices; this run has {len(classes)}",
                hint='set weight = "examples" in [method]',
            )
        _, held_out = _evaluation_data(config.evaluate, config.seed)
        examples = HeldOut(classes[0].bundle, held_out, batch_size=config.evaluate.batch_size)
        return learning(examples, steps=config.evaluate.held_out_steps)
    return fusing


def _evaluation_data(section: EvaluateSection, seed: int) -> tuple[Any, Any]:
    """The data set's test part where it has one: what is evaluated on, and what is held out for learned weights."""
    from edgefl_device.data.sources import read_splits
    from edgefl_device.work.evaluate import set_aside

    splits = read_splits(section.data)
    held_out, rest = set_aside(splits.train if splits.test is None else splits.test, section.held_out, seed=seed)
    return rest, held_out


def write_models(method: Method, classes: Sequence[DeviceClass], tensors: Mapping[str, Array], place: Path) -> None:
    """What a finished run leaves of its models: weights.safetensors, and an inference model of each class whose model
    is not the devices' alone: model.onnx, or models/CLASS.onnx. Of a run with a student, the student's.

    Where a bundle has no program `predict`, no model.
    """
    if isinstance(method, CoDream) and method.alone:
        return
    if isinstance(method, CoDream):
        found = [(method.student.bundle, method.student_in(tensors), place / "model.onnx")]
        weights = found[0][1]
    else:
        several = len(classes) > 1
        found = [
            (one.bundle, whole_state(one.bundle, tensors), _model_path(place, one, several))
            for one in classes
            if not personal_of(method, one)
        ]
        weights = dict(tensors) if several or not found else found[0][1]
    write_atomic(place / "weights.safetensors", save_tensors(weights))
    for bundle, state, path in found:
        if "predict" in bundle.manifest.programs:
            path.parent.mkdir(exist_ok=True)
            write_model(bundle, state, path)


def _model_path(place: Path, one: DeviceClass, several: bool) -> Path:
    return place / "models" / f"{one.name}.onnx" if several else place / "model.onnx"
