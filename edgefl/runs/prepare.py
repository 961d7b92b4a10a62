"""What a run needs before it begins: the bundles of its device classes, its method checked against them, how replies
become one, and what evaluates its state."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgefl.address import Tls
from edgefl.aggregator import classes as device_classes
from edgefl.aggregator.checks import check_ask, check_sends
from edgefl.aggregator.chosen import name_of
from edgefl.aggregator.classes import DeviceClass, check_classes, initial, parse_condition
from edgefl.aggregator.fusion import Fusing, fusing
from edgefl.aggregator.learned import learning
from edgefl.aggregator.serve import Measure
from edgefl.aggregator.settings import RoundSettings
from edgefl.aggregator.weights import LEARNED
from edgefl.bundle import Bundle, read
from edgefl.errors import ConfigError
from edgefl.files import directory_atomic, write_atomic
from edgefl.method import Ask, Method, Work, Worked
from edgefl.protocol import MAX_HEADER_BYTES, Announcement, BlobRef, devices_that_fit
from edgefl.runs import questions
from edgefl.runs.evaluation import evaluation_data, evaluator_of
from edgefl.runs.example_data import with_examples
from edgefl.runs.own_method import guarded
from edgefl.runs.run_file import OWN_CODE, make_method, own_code_of, with_own_code
from edgefl.runs.sections import BrokerSection, BundleSection, ModelSection, RunFile

if TYPE_CHECKING:
    from edgefl_device.work.student import Student


Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A run that can begin. `config` names the copies of somebody's own code; `work` is the model of a method that has
    one."""

    config: RunFile
    classes: list[DeviceClass]
    method: Method
    fusing: Fusing
    settings: RoundSettings
    evaluate: Measure | None
    work: Callable[[Work], Worked] | None


def prepare(config: RunFile, place: Path, progress: Progress) -> Prepared:
    """Everything that a run needs, made or copied into the run directory `place` so that a resume needs nothing else.

    Raises ConfigError and BundleError for what no device of the run could do, and what an export raises.
    """
    config = with_own_code_kept(config, place)
    classes = classes_of(config, place, progress)
    student = student_of(config, place, progress)
    method = method_of(config, classes, student)
    return Prepared(
        config,
        classes,
        method,
        fusing_of(config, classes),
        round_of(config, method),
        evaluator_of(config, classes, method, progress),
        student.carry_out if student is not None else None,
    )


def classes_of(config: RunFile, place: Path, progress: Progress) -> list[DeviceClass]:
    """The run's device classes. Raises ConfigError where their bundles disagree about what they share."""
    classes = [
        DeviceClass(
            name=one.class_name,
            bundle=_bundle_of(one, place / "bundles" / one.class_name, config, one.class_name, progress),
            condition=parse_condition(one.condition) if one.condition else device_classes.Condition(),
            devices=one.devices,
            settings=one.settings,
        )
        for one in config.bundles
    ]
    check_classes(classes)
    return classes


def _bundle_of(section: ModelSection, inside: Path, config: RunFile, name: str, progress: Progress) -> Bundle:
    """The bundle, in the run directory: exported there, or copied, so that a resume needs nothing else.

    Of a model that is exported, the names of classes and the range are those of the fleet's data, where the run has one
    and its options do not say.
    """
    if inside.exists():
        return read(inside)
    if section.path is not None:
        bundle = read(section.path)
        with directory_atomic(inside) as folder:
            for file in (path for path in bundle.path.rglob("*") if path.is_file()):
                target = folder / file.relative_to(bundle.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        return read(inside)
    assert section.model is not None
    options = {"seed": config.seed, **section.options}
    if config.fleet is None or "data" in options:
        options = with_examples(options)
    else:
        options = with_examples({"data": config.fleet.data, **options}, label=config.fleet.label)
    where = f"{'[[bundle]]' if isinstance(section, BundleSection) else '[student]'} {name!r} options"
    from edgefl_exporter import export_source

    return export_source(
        section.model, options, inside, name, where=where, progress=lambda line: progress(f"{name}: {line}")
    )


def student_of(config: RunFile, place: Path, progress: Progress) -> Student | None:
    """The model that learns on the aggregator, where the run has one."""
    if config.student is None:
        return None
    from edgefl_device.work.student import Student

    return Student(_bundle_of(config.student, place / "student", config, "student", progress))


def method_of(config: RunFile, classes: Sequence[DeviceClass], student: Student | None = None) -> Method:
    """The run's method. Raises ConfigError, BundleError for one whose first ask a class of devices cannot do."""
    method = make_method(config, initial(classes), where="run file", student=student)
    if (found := own_code_of(config.method, "name")) is not None:
        file, name = found
        method = guarded(method, f"{file.name}:{name}")
    manifests = [one.bundle.manifest for one in classes]
    questions.check(method, manifests, config.round.fraction)
    asks = questions.rehearsal(method)
    kept = {task.keep.buffer for ask in asks for task in ask.tasks if task.keep is not None}
    for ask in asks:
        for manifest in manifests:
            check_ask(ask, manifest, kept=kept)
        check_sends(ask, manifests)
        check_names(ask, config.round)
    return method


def round_of(config: RunFile, method: Method) -> RoundSettings:
    """How the run's rounds are filled: with no more devices than its method was told that there are (SCAFFOLD's N)."""
    most = questions.most_devices(method)
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


def with_own_code_kept(config: RunFile, place: Path) -> RunFile:
    """The run file with copies of somebody's own code in the run directory, for a resume: a run ends with the code that
    it began with. Raises ConfigError where there is neither a copy nor the file."""
    method = dict(config.method)
    for key, inside in OWN_CODE.items():
        if (found := own_code_of(method, key)) is None:
            continue
        file, name = found
        copy = place / inside
        if not copy.exists():
            if not file.is_file():
                called = f"[method] {key} {file.name + ':' + name!r}"
                raise ConfigError(f"{called}: no file {file}", hint="its path is seen from the run file")
            write_atomic(copy, file.read_bytes())
        method = with_own_code(method, key, copy)
    return msgspec.structs.replace(config, method=method)


def fusing_of(config: RunFile, classes: Sequence[DeviceClass]) -> Fusing:
    """How replies are weighted and fused."""
    if name_of(config.method.get("weight", ""), "weight rule") == LEARNED and config.evaluate is not None:
        from edgefl_device.work.evaluate import HeldOut

        if len(classes) > 1:
            raise ConfigError(
                f"weight = {LEARNED!r} needs one bundle for all devices; this run has {len(classes)}",
                hint='set weight = "examples" in [method]',
            )
        _, held_out = evaluation_data(config.evaluate, config.seed)
        examples = HeldOut(classes[0].bundle, held_out, batch_size=config.evaluate.batch_size)
        return learning(examples, steps=config.evaluate.held_out_steps)
    return fusing


def tls_of(broker: BrokerSection) -> Tls:
    """The files of its certificates."""
    return Tls(*(Path(p) if p else None for p in (broker.ca, broker.cert, broker.key)))
