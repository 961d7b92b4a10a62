"""What an ask means for a bundle: whether devices can carry it out, and what a reply to it must hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from edgefl.aggregator.classes import Examples
from edgefl.aggregator.fusion import COUNTS
from edgefl.aggregator.weights import Rule, rule_of
from edgefl.errors import ConfigError, RemoteProtocolError
from edgefl.feeds import buffer_of, fault
from edgefl.manifest import Manifest, select
from edgefl.method import Ask, Task
from edgefl.protocol import MAX_BLOB_BYTES
from edgefl.tensors import Array

LARGEST_METRIC = 1e30  # so many times the examples of a fleet are still a float64
SLACK = 0.01  # of a sum of probabilities that travel as float16
Expected = Mapping[str, tuple[str, tuple[int | str, ...]]]  # name -> (dtype on the wire, shape); a string is any length


def check_ask(ask: Ask, manifest: Manifest, *, kept: Collection[str] = ()) -> None:
    """Raise BundleError for a program that the bundle has not, ConfigError for a task that no device could do right.

    `kept`: buffers into which earlier asks keep examples.
    """
    asked = {task.program for task in ask.tasks}
    if wrong := fault(ask.tasks):
        raise ConfigError(f"the method asks for what no device does: {wrong}")
    _check_examples(ask, manifest, set(kept))
    _check_rule(rule_of(ask.weight), asked, manifest)
    if not ask.durable:
        _check_nothing_kept(ask, manifest)
    for task in ask.tasks:
        _check_batch_size(task, manifest)
        for name in manifest.program(task.program).reads:
            writers = {program for program, entry in manifest.programs.items() if name in entry.writes}
            if manifest.tensor(name).role == "optimizer" and writers and not writers & asked:
                raise ConfigError(
                    f"program {task.program!r} of bundle {manifest.name!r} reads {name!r}, which only program "
                    f"{', '.join(sorted(writers))} sets, and the method does not ask for it",
                    hint=f"the bundle was exported for {manifest.method!r}: choose a method that asks for "
                    f"{min(writers)!r} (docs/methods.md), or export without the option that adds it",
                )
        known = {i.name for i in manifest.program(task.program).inputs if i.source == "setting"}
        for name in task.settings:
            if name not in known:
                raise ConfigError(
                    f"the method sets {name!r}, but program {task.program!r} of bundle {manifest.name!r} has no such "
                    f"setting; it has {', '.join(sorted(known)) or 'none'}",
                    hint="export the bundle with that option",
                )


def check_sends(ask: Ask, manifests: Sequence[Manifest]) -> None:
    """Raise ConfigError for a pattern of `send` that nothing matches in any bundle, or a bundle that sends nothing."""
    replies = [reply_names(ask, manifest) for manifest in manifests]
    for task in ask.tasks:
        for pattern in task.send:
            if not any(select(names, [pattern]) for names in replies):
                raise ConfigError(
                    f"the method wants {pattern!r} of program {task.program!r}, which no bundle of the run can send",
                    hint="state that is local never leaves a device; `edgefl inspect` shows what is shared",
                )
    for names, manifest in zip(replies, manifests, strict=True):
        if not names and any(task.send for task in ask.tasks):
            raise ConfigError(f"bundle {manifest.name!r} shares nothing of what the method wants")


def personal(ask: Ask, manifest: Manifest, fused: Iterable[str]) -> list[str]:
    """What of the model devices change and keep for themselves: without it nobody but the device has a whole model.

    `fused`: the fusion groups that the aggregator has. Counters and the optimizer's tensors are not meant.
    """
    public, changed = set(fused), {name for task in ask.tasks for name in manifest.program(task.program).writes}
    model = [t for t in manifest.state if t.role != "optimizer" and np.dtype(t.dtype).kind == "f"]
    return [t.name for t in model if t.name in changed and (t.fuse == "local" or t.public_name not in public)]


def _check_rule(rule: Rule, asked: set[str], manifest: Manifest) -> None:
    """Raise ConfigError where a bundle cannot give what a weight rule needs."""
    for metric in rule.metrics:
        program, _, output = metric.partition(".")
        outputs = manifest.program(program).outputs if program in asked else ()
        if not any(o.name == output and o.is_metric for o in outputs):
            raise ConfigError(
                f"weight rule {rule.name!r} needs {output!r} of program {program!r}, which bundle {manifest.name!r} "
                "does not measure",
                hint='export an equilibrium model, or set weight = "examples" in [method]',
            )
    for program in rule.programs:
        if program not in manifest.programs:
            raise ConfigError(
                f"weight rule {rule.name!r} needs program {program!r}, which bundle {manifest.name!r} has not",
                hint="export it with --programs train,gradient,evaluate,predict",
            )


def _check_examples(ask: Ask, manifest: Manifest, kept: set[str]) -> None:
    """Raise ConfigError for a task whose examples nobody announces or keeps."""
    for number, task in enumerate(ask.tasks, 1):
        where = f"task {number} of the method ({task.program!r})"
        sources = {i.source for i in manifest.program(task.program).inputs}
        if task.keep is not None:
            kept.add(task.keep.buffer)
        if (buffer := buffer_of(task.feed)) is not None and buffer not in kept:
            raise ConfigError(f"{where} is fed {task.feed!r}, but no task keeps anything in {buffer!r}")
        if task.feed == "noise" and "labels" in sources:
            raise ConfigError(f"{where} is fed noise, but the program wants labels as well")
        needed = ["x"] if task.feed == "announced" or (task.keep is not None and task.feed != "noise") else []
        needed += ["y"] if task.feed == "announced" and "labels" in sources else []
        for name in needed:
            if name not in ask.tensors:
                raise ConfigError(f"{where} needs the tensor {name!r}, which the method does not announce")


def _check_nothing_kept(ask: Ask, manifest: Manifest) -> None:
    """Raise ConfigError for an ask whose outcome need not be durable and that changes what devices keep: after a resume
    they would carry it out on its own outcome."""
    loaded = {name for task in ask.tasks for name in select(ask.tensors, task.load)}
    own = [tensor.name for tensor in manifest.state if tensor.public_name not in loaded]
    for task in ask.tasks:
        changed = {*manifest.program(task.program).writes, *select(own, task.reset)}
        for name in own:
            if name in changed:
                raise ConfigError(
                    f"program {task.program!r} of bundle {manifest.name!r} changes {name!r}, which a device keeps, in "
                    "an ask that is not durable",
                    hint="make the ask durable, or let the method announce the tensor",
                )


def _check_batch_size(task: Task, manifest: Manifest) -> None:
    fixed = manifest.program(task.program).fixed_batch
    if fixed is not None and not 0 < task.batch_size <= fixed:
        raise ConfigError(
            f"the method asks for batches of {task.batch_size or 'all examples'}, but program {task.program!r} of "
            f"bundle {manifest.name!r} takes at most {fixed}",
            hint=f"set batch_size = {fixed} in [method], or export with --batch dynamic",
        )


def reply_names(ask: Ask, manifest: Manifest) -> Expected:
    """What a reply to `ask` must hold."""
    expected: dict[str, tuple[str, tuple[int | str, ...]]] = {}
    for task in ask.tasks:
        program = manifest.program(task.program)
        specs: dict[str, tuple[str, tuple[int | str, ...]]]
        specs = {group: (t.dtype, t.shape) for group, t in manifest.fusion_map().items()}
        # As on a device: a glob reaches no metric, since metrics are reported anyway; an exact name does.
        outputs = [o for o in program.outputs if not o.is_metric or o.name in task.send]
        rows = _rows(task, ask)
        specs |= {o.name: (o.dtype, _known(o.shape, rows)) for o in outputs if o.name not in specs}
        for name in select(specs, task.send):
            dtype, shape = specs[name]
            expected[name] = (task.encoding if dtype == "float32" else dtype, shape)
    return expected


def _rows(task: Task, ask: Ask) -> int | None:
    """How many examples a task's feed has on every device; None where each has its own number."""
    if task.feed == "noise":
        return task.batch_size
    told = task.feed == "announced" or (task.keep is not None and task.keep.add)
    return len(ask.tensors["x"]) if told and "x" in ask.tensors else None


def _known(shape: tuple[int | str, ...], rows: int | None) -> tuple[int | str, ...]:
    """A shape with its number of examples in the place of "batch"."""
    return shape if rows is None or not shape or isinstance(shape[0], int) else (rows, *shape[1:])


def reply_metrics(ask: Ask, manifest: Manifest) -> set[str]:
    """The metrics that a reply to `ask` may report."""
    found = set()
    for task in ask.tasks:
        names = [o.name for o in manifest.program(task.program).outputs if o.is_metric]
        found |= {f"{task.program}.{name}" for name in (*names, "examples")}
    return found


def metrics_of(
    ask: Ask, manifest: Manifest, metrics: Mapping[str, float], examples: Examples | None
) -> dict[str, float]:
    """Those of a reply's metrics that can be: known, of a size that adds up, counts not negative, and no more examples
    than the device states. The others are left out: none of them says what to do with a model."""
    most = _most_examples(ask, examples)
    found = {}
    for name in reply_metrics(ask, manifest) & metrics.keys():
        value, output = metrics[name], name.partition(".")[2]
        least = 0.0 if output in COUNTS else -LARGEST_METRIC
        if least <= value <= most.get(name, LARGEST_METRIC):  # never so for NaN
            found[name] = value
    return dict(sorted(found.items()))


def _most_examples(ask: Ask, examples: Examples | None) -> dict[str, float]:
    """ "PROGRAM.examples" -> the most that a device with so many can report, where that is known."""
    own = {} if examples is None else {"train": examples.train, "test": examples.test}
    most: dict[str, float] = {}
    for task in ask.tasks:
        known = own.get(task.feed, _rows(task, ask))
        name = f"{task.program}.examples"
        most[name] = max(most.get(name, 0.0), LARGEST_METRIC if known is None else known)
    return most


def trained_by(ask: Ask, manifest: Manifest) -> tuple[Task, ...]:
    """The tasks of an ask whose steps a reply counts: fed the device's own data, and their state is sent."""
    groups = manifest.fusion_map()
    return tuple(task for task in ask.tasks if task.feed == "train" and select(groups, task.send))


def most_steps(tasks: Iterable[Task], examples: int) -> int:
    """How many steps of the optimizer a device with so many examples can take in these tasks: one for each batch."""
    batches = [math.ceil(examples / (task.batch_size or max(1, examples))) for task in tasks]
    return sum(task.steps or task.epochs * count for task, count in zip(tasks, batches, strict=True))


def check_reply(
    tensors: Mapping[str, Array], expected: Expected, device: str, certain: Collection[str] = ()
) -> dict[str, Array]:
    """The reply's tensors, float16 widened to float32. `certain`: those whose rows are probabilities.

    Raises RemoteProtocolError naming the first tensor that is missing, unknown, of another dtype or shape, not finite,
    or holds no probabilities where it should.
    """
    if missing := sorted(expected.keys() - tensors.keys()):
        raise RemoteProtocolError(f"device {device!r} did not send {missing[0]!r}")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise RemoteProtocolError(f"device {device!r} sent {unknown[0]!r}, which was not asked for")
    checked: dict[str, Array] = {}
    for name, (dtype, shape) in expected.items():
        value = tensors[name]
        fits = len(value.shape) == len(shape) and all(
            isinstance(w, str) or w == g for w, g in zip(shape, value.shape, strict=True)
        )
        if value.dtype != np.dtype(dtype) or not fits:
            raise RemoteProtocolError(
                f"device {device!r} sent {name!r} as {value.dtype} {list(value.shape)}; expected {dtype} {list(shape)}",
                hint="does the device use another bundle?",
            )
        checked[name] = value.astype(np.float32) if value.dtype == np.float16 else value
        if value.dtype.kind == "f" and not np.isfinite(checked[name]).all():
            raise RemoteProtocolError(f"device {device!r} sent {name!r} with a value that is not finite")
        if name in certain and not _is_certain(value):
            raise RemoteProtocolError(f"device {device!r} sent {name!r}, whose rows are no probabilities")
    return checked


def _is_certain(rows: Array) -> bool:
    """Whether each row [n, classes] is 0 or more everywhere, and 1 together."""
    return rows.min(initial=0) >= 0 and bool(np.abs(rows.sum(1, np.float64) - 1).max(initial=0) <= SLACK)


def largest_reply_bytes(expected: Expected) -> int:
    """An upper bound of a reply's safetensors bytes, so that nobody can make us reserve more."""
    if any(isinstance(n, str) for _, shape in expected.values() for n in shape):
        return MAX_BLOB_BYTES
    raw = sum(np.dtype(d).itemsize * math.prod(n for n in s if isinstance(n, int)) for d, s in expected.values())
    names = sum(len(name.encode()) + 120 for name in expected)
    return raw + names + 1024
