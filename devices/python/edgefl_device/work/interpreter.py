"""Carries out tasks on a runtime. Everything a method wants from a device passes through `answer` and `perform`.

What each field of a task means is in `edgefl/method.py`. Nothing here knows a method, a network or a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from edgefl.errors import EdgeflError, InputError, NotFinite
from edgefl.feeds import fault
from edgefl.manifest import Output
from edgefl.method import Task
from edgefl.random_numbers import order_of, seed_of
from edgefl.tensors import Array, Tensors
from edgefl_device.data.batches import batches
from edgefl_device.data.dataset import AnyArray, Dataset
from edgefl_device.engines.engine import Engine
from edgefl_device.work.kept import Buffers
from edgefl_device.work.plan import Plan, changes_nothing, own_state, plan
from edgefl_device.work.private import Private
from edgefl_device.work.stopping import Stop, Stopped

# Program, batches done, batches of this task, loss of the last batch where the program has one.
Progress = Callable[[str, int, int, float | None], None]


@dataclass(frozen=True)
class Outcome:
    """What a device answers to the tasks of one ask; the fields of a `Reply` that are not its address."""

    tensors: Mapping[str, Array]
    metrics: Mapping[str, float]
    examples: int
    steps: int


@dataclass(frozen=True)
class Answer:
    """An outcome, and the private state after it. `changed`: whether doing the same tasks again, from there, might give
    another outcome; where not, the private state's tensors are what they were."""

    outcome: Outcome
    private: Private
    changed: bool


def answer(
    runtime: Engine,
    tasks: Sequence[Task],
    announced: Tensors,
    feeds: Mapping[str, Dataset],
    private: Private,
    *,
    device: str,
    own: Mapping[str, float] = MappingProxyType({}),
    buffers: Buffers | None = None,
    stop: Stop | None = None,
    progress: Progress | None = None,
) -> Answer:
    """`perform` on the state that this device has kept: `private` is what the answer before gave, empty at first.

    Whatever else the runtime held on entry plays no part; what of `private` it still holds is not loaded again.
    """
    manifest = runtime.manifest
    # A tensor that only a later task loads is nobody's until then: the bundle's.
    wanted = {*private.tensors, *own_state(manifest, tasks[:1], announced)}
    held = private.held_by(runtime)
    if missing := wanted - held:
        runtime.reset(sorted(name for name in missing if name not in private.tensors))
        runtime.load({name: private.tensors[name] for name in missing if name in private.tensors})
    # Where this fails nothing is undone, which would need a second copy of the state all the while: `private` is still
    # what it was, and the runtime, whose version is another, holds none of it.
    plans = _plans(runtime, tasks, announced, feeds, own, buffers)
    outcome = _carry_out_all(runtime, plans, announced, device, stop, progress)
    mine = own_state(manifest, tasks, announced)
    if changes_nothing(manifest, tasks, announced, private.tensors):
        still = (held | wanted).intersection(mine)
        return Answer(outcome, Private(private.tensors, still, runtime.version), changed=False)
    return Answer(outcome, Private(runtime.state(mine), frozenset(mine), runtime.version), changed=True)


def perform(
    runtime: Engine,
    tasks: Sequence[Task],
    announced: Tensors,
    feeds: Mapping[str, Dataset],
    *,
    device: str,
    own: Mapping[str, float] = MappingProxyType({}),
    buffers: Buffers | None = None,
    stop: Stop | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Carry out `tasks` in order. The state changes only when all of them succeed.

    `feeds` holds the device's own "train" and "test" data, each from `fit_to_contract`. `device` is its name,
    which takes part in the shuffle. `own` are its own settings, which count more than a task's. `buffers` are those
    of this ask; without them, a task that keeps examples or is fed kept ones is refused. Without "test" data, a task
    that is fed them and sends nothing measures nothing, and that is all.

    Metrics are "PROGRAM.OUTPUT" for every output that is one number, over the batches of the last epoch, and
    "PROGRAM.examples", the examples of that epoch. When two tasks run one program, the later one's are kept.
    `examples` is how many different examples of the "train" feed the tasks saw, `steps` how many steps of the optimizer
    those of them took whose state is sent.

    A "delta" is the difference to the state right after the task's `load` and `reset`; outputs are always values.

    Raises InputError for a task that does not fit the bundle or the data, before anything is kept or runs; EdgeflError
    when training diverges, a value does not fit float16 or the disk takes no more; Stopped when `stop` is requested,
    between batches or in the middle of one. What was kept stays kept then: the same ask would keep it again.
    """
    plans = _plans(runtime, tasks, announced, feeds, own, buffers)
    before = runtime.state(_changed_by(plans))
    try:
        return _carry_out_all(runtime, plans, announced, device, stop, progress)
    except BaseException:
        runtime.load(before)
        raise


def _plans(
    runtime: Engine,
    tasks: Sequence[Task],
    announced: Tensors,
    feeds: Mapping[str, Dataset],
    own: Mapping[str, float],
    buffers: Buffers | None,
) -> list[Plan]:
    """The tasks checked, and what they keep in buffers saved."""
    if wrong := fault(tasks):
        raise InputError(wrong)
    plans = [plan(i, task, runtime.manifest, announced, feeds, own, buffers) for i, task in enumerate(tasks, 1)]
    _refuse_double_sends(plans)
    if buffers is not None:
        buffers.save()
    return plans


def _carry_out_all(
    runtime: Engine,
    plans: Sequence[Plan],
    announced: Tensors,
    device: str,
    stop: Stop | None,
    progress: Progress | None,
) -> Outcome:
    tensors: dict[str, Array] = {}
    metrics: dict[str, float] = {}
    for one in plans:
        sent, measured = _carry_out(runtime, one, announced, device, stop, progress)
        tensors |= sent
        metrics |= measured
    seen = [one.examples for one in plans if one.task.feed == "train"]
    steps = sum(one.steps for one in plans)
    return Outcome(tensors=tensors, metrics=metrics, examples=max(seen, default=0), steps=steps)


def _carry_out(
    runtime: Engine,
    one: Plan,
    announced: Tensors,
    device: str,
    stop: Stop | None,
    progress: Progress | None,
) -> tuple[dict[str, Array], dict[str, float]]:
    """One task: the tensors it sends and its metrics."""
    task = one.task
    runtime.load({name: announced[public] for public, name in one.load.items()})
    runtime.reset(one.reset)
    base = runtime.state(one.send_state.values()) if task.send_as == "delta" else {}
    reduced = _Reduced(one)
    seed = np.array(seed_of(task.seed, device), np.int64)
    for done, (epoch, features, labels) in enumerate(_batches(one, device)):
        if stop is not None and stop.requested:
            raise Stopped("stopped on request")
        if epoch != reduced.epoch:
            reduced = _Reduced(one, epoch)
        reduced.add(runtime.step(task.program, _inputs(one, features, labels, seed), stop), len(labels), done)
        if progress is not None:
            progress(task.program, done + 1, one.batches, reduced.loss)
    _refuse_diverged_state(runtime, one)

    outputs = reduced.finish()
    tensors: dict[str, Array] = {}
    for public, name in one.send_state.items():
        value = runtime.view(name)
        # The delta takes the place of its base: on a small board one copy of the weights less counts.
        changed = np.subtract(value, base[name], out=base[name]) if name in base else value.copy()
        tensors[public] = _encode(changed, one, name)
    for name in one.send_outputs:
        if name not in outputs:
            raise InputError(f"{one.where}: send {name!r}: the task has no batches, so no outputs")
        tensors[name] = _encode(outputs[name], one, name)
    metrics = {f"{task.program}.{o.name}": outputs[o.name].item() for o in one.program.outputs if _reported(o, outputs)}
    if reduced.examples:
        metrics[f"{task.program}.examples"] = float(reduced.examples)
    return tensors, {name: float(value) for name, value in metrics.items()}


def _batches(one: Plan, device: str) -> Iterator[tuple[int, dict[str, Array], Array]]:
    """Epoch, features and labels of every batch of the task; `steps` may stop in the middle of an epoch."""
    left, epoch = one.batches, 0
    seed = None if one.task.feed == "noise" else one.task.seed  # noise has one order, the same on every device
    while left:
        order = order_of(len(one.data), seed=seed, device=device, epoch=epoch)
        for features, labels in batches(one.data, one.contract, order, one.task.batch_size):
            yield epoch, features, labels
            left -= 1
            if not left:
                return
        epoch += 1


def _inputs(one: Plan, features: dict[str, Array], labels: Array, seed: Array) -> dict[str, Array]:
    """A batch as the program's inputs. Where its batch size is fixed, a shorter batch is repeated up to it."""
    there, size = len(labels), one.program.fixed_batch
    present = np.ones(there, np.float32)
    if size is not None and there < size:
        rows = np.arange(size) % there
        features = {name: array[rows] for name, array in features.items()}
        labels, present = labels[rows], (np.arange(size) < there).astype(np.float32)
    fed = {"labels": labels, "present": present, "seed": seed}
    inputs = {i.name: fed[i.source] for i in one.program.inputs if i.source in fed}
    taken = [i for i in one.program.inputs if i.source == "features"]
    return inputs | {i.name: features[i.feature or one.contract.feature.name] for i in taken} | dict(one.settings)


class _Reduced:
    """The outputs of one epoch, reduced batch by batch as the manifest says."""

    def __init__(self, one: Plan, epoch: int = 0) -> None:
        self.epoch = epoch
        self.examples = 0
        self.loss: float | None = None  # of the last batch
        self._one = one
        self._sums: dict[str, AnyArray] = {}
        self._parts: dict[str, list[Array]] = {}

    def add(self, outputs: Mapping[str, Array], examples: int, batch: int) -> None:
        """`batch` counts from 0, over all epochs."""
        self.examples += examples
        for described in self._one.program.outputs:
            name, value = described.name, outputs[described.name]
            if not np.isfinite(value).all():
                got = value.item() if value.size == 1 else "not finite"
                raise _diverged(self._one, f"{self._one.task.program}.{name} is {got} at batch {batch + 1}")
            if name == "loss" and described.is_metric:
                self.loss = value.item()
            if described.over_batches == "concat":
                self._parts.setdefault(name, []).append(value)
            elif described.over_batches == "last":
                self._sums[name] = value
            else:  # float64: a float32 sum of a large epoch loses digits
                weight = examples if described.over_batches == "mean" else 1
                self._sums[name] = self._sums.get(name, np.float64(0)) + value.astype(np.float64) * weight

    def finish(self) -> dict[str, Array]:
        """Output -> its value for the epoch, in its own dtype where that is an array to send."""
        finished = {name: p[0] if len(p) == 1 else np.concatenate(p) for name, p in self._parts.items()}
        for described in self._one.program.outputs:
            if described.name in self._sums:
                total = self._sums[described.name]
                value = total / self.examples if described.over_batches == "mean" else total
                # Metrics stay float64, and a mean of integers is no integer.
                narrow = described.dtype in ("float32", "float16") and not described.is_metric
                finished[described.name] = np.asarray(value, described.dtype if narrow else None)
        return finished


def _reported(output: Output, outputs: Mapping[str, Array]) -> bool:
    return output.is_metric and output.name in outputs


def _encode(array: Array, one: Plan, name: str) -> Array:
    """`array` as it travels: floats as the task's encoding, never wider than they are."""
    if array.dtype.kind != "f":
        return array
    wanted = np.dtype(one.task.encoding)
    if array.dtype.itemsize <= wanted.itemsize:
        return array
    largest = np.maximum(array.max(initial=0), -array.min(initial=0))
    with np.errstate(over="ignore"):
        if not np.isfinite(largest.astype(wanted)):  # one number instead of all: a check in float16 is slow
            raise EdgeflError(
                f"{one.where}: {name!r} holds {float(largest):g}, too large for {wanted}",
                hint="ask with encoding float32",
            )
    return array.astype(wanted)


def _refuse_diverged_state(runtime: Engine, one: Plan) -> None:
    for name in one.program.writes:
        value = runtime.view(name)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise _diverged(one, f"state tensor {name!r} is not finite after {one.batches} batches")


def _diverged(one: Plan, what: str) -> EdgeflError:
    if not one.program.writes:
        return NotFinite(f"{one.where}: {what}", hint="the announced state may have diverged")
    return NotFinite(f"training diverged: {one.where}: {what}", hint="lower learning_rate")


def _refuse_double_sends(plans: Sequence[Plan]) -> None:
    sent: set[str] = set()
    for one in plans:
        for name in (*one.send_state, *one.send_outputs):
            if name in sent:
                raise InputError(f"{one.where}: {name!r} is already sent by an earlier task of this ask")
            sent.add(name)


def _changed_by(plans: Sequence[Plan]) -> list[str]:
    """State tensors that the plans may change."""
    return sorted({name for one in plans for name in (*one.load.values(), *one.reset, *one.program.writes)})
