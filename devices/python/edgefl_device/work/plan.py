"""A task checked against the bundle, the announced tensors and the device's data, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edgefl.data_contract import DataContract, Normalisation
from edgefl.errors import DataError, InputError
from edgefl.feeds import buffer_of
from edgefl.manifest import Input, Manifest, Program, select
from edgefl.method import Task
from edgefl.random_numbers import normals
from edgefl.tensors import Array, Tensors
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.work.kept import FEATURES, LABELS, Buffers

NO_DATA = Dataset(np.zeros((0, 0)), np.zeros(0))


@dataclass(frozen=True)
class Plan:
    """One task, its names resolved and its data in hand. `where` names the task in errors.

    `load` and `send_state`: what a tensor is called on its way -> what it is called in the state.
    """

    where: str
    task: Task
    program: Program
    data: Dataset
    contract: DataContract
    load: Mapping[str, str]
    reset: tuple[str, ...]
    send_state: Mapping[str, str]
    send_outputs: tuple[str, ...]
    settings: Mapping[str, Array]

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.data) / (self.task.batch_size or max(1, len(self.data))))

    @property
    def batches(self) -> int:
        """How many batches the whole task is."""
        return self.task.steps or self.task.epochs * self.batches_per_epoch

    @property
    def micro_batches(self) -> int:
        """How many batches a step of the optimizer takes."""
        return max(1, math.ceil(self.settings.get("micro_batches", np.ones(()))))

    @property
    def steps(self) -> int:
        """How many steps of the optimizer the task is: of a program that trains on the device's own data and whose
        state is sent."""
        return self.batches // self.micro_batches if self.task.feed == "train" and self.send_state else 0

    @property
    def examples(self) -> int:
        """How many different examples of its feed the task sees."""
        return min(len(self.data), self.batches * (self.task.batch_size or len(self.data)))


def plan(
    number: int,
    task: Task,
    manifest: Manifest,
    announced: Tensors,
    feeds: Mapping[str, Dataset],
    own: Mapping[str, float],
    buffers: Buffers | None = None,
) -> Plan:
    """Check one task, whose feed `edgefl.feeds.fault` has no fault with. Raises InputError (DataError for data) that
    names the task and what is wrong with it.

    A task fed "test" that sends nothing only measures. Where there are no such data it has no batches: it loads and
    resets as it would, and reports nothing.

    `own` are the device's own settings: where the program has one of them, it counts more than the task's. What the
    task keeps is noted in `buffers`, and not yet saved.
    """
    where = f"task {number} ({task.program!r})"
    program = manifest.programs.get(task.program)
    if program is None:
        raise InputError(
            f"{where}: bundle {manifest.name!r} has no such program; it has {', '.join(manifest.programs)}",
            hint="does the aggregator use the same bundle?",
        )
    for name in ("epochs", "steps", "batch_size"):
        if getattr(task, name) < 0:
            raise InputError(f"{where}: {name} is {getattr(task, name)}; expected 0 or more")
    fixed = program.fixed_batch
    if fixed is not None and not 0 < task.batch_size <= fixed:
        raise InputError(
            f"{where}: batch_size is {task.batch_size}, but the program was exported for batches of {fixed}",
            hint=f"ask with batch_size = {fixed}, or export with --batch dynamic",
        )
    left_out = task.feed == "test" and not task.send and len(feeds.get("test", NO_DATA)) == 0
    if left_out:
        task, contract, data = msgspec.structs.replace(task, steps=0), manifest.data, NO_DATA
    else:
        contract, data = _feed(where, task, program, manifest.data, announced, feeds, buffers)
    send_state, send_outputs = _sends(where, task, program, manifest)
    one = Plan(
        where=where,
        task=task,
        program=program,
        data=data,
        contract=contract,
        load=_loads(where, task, manifest, announced),
        reset=_matches(where, "reset", task.reset, [tensor.name for tensor in manifest.state]),
        send_state=send_state,
        send_outputs=send_outputs,
        settings=_settings(where, task, program, own),
    )
    if not left_out:
        _check_micro_batches(one)
    return one


def own_state(manifest: Manifest, tasks: Sequence[Task], announced: Tensors) -> list[str]:
    """The state tensors that are the device's own in these tasks: those that none of them loads.

    A device keeps its own state from ask to ask. What an ask loads is the aggregator's, which announces it again.
    """
    loaded = {name for task in tasks for name in select(announced, task.load)}
    return [tensor.name for tensor in manifest.state if tensor.public_name not in loaded]


def _check_micro_batches(one: Plan) -> None:
    """Gradients that are added up over more batches than there are would never be applied."""
    wanted = one.micro_batches
    if wanted > 1 and one.batches < wanted:
        raise InputError(
            f"{one.where}: {one.batches} batches, but a step needs {wanted}, so nothing would train",
            hint="set a smaller batch_size or micro_batches in [method], or more epochs",
        )


def changes_nothing(manifest: Manifest, tasks: Sequence[Task], announced: Tensors, private: Tensors) -> bool:
    """Whether tasks leave what the device has kept for itself as it is, so that doing them again gives the same reply.

    They then write, reset and load nothing of it. What they keep in buffers counts for nothing here: it has a file of
    its own for each round.
    """
    loaded = {name for task in tasks for name in select(announced, task.load)}
    public = {tensor.name: tensor.public_name for tensor in manifest.state}
    written = any(manifest.program(task.program).writes or task.reset for task in tasks)
    return not written and not any(public.get(name) in loaded for name in private)


def _feed(
    where: str,
    task: Task,
    program: Program,
    contract: DataContract,
    announced: Tensors,
    feeds: Mapping[str, Dataset],
    buffers: Buffers | None,
) -> tuple[DataContract, Dataset]:
    buffer = buffer_of(task.feed)
    if (buffer is not None or task.keep is not None) and buffers is None:
        raise InputError(f"{where}: nothing can be kept here", hint="only a device in a run has buffers")
    examples = _noise(where, task, program) if task.feed == "noise" else announced
    if task.keep is not None and buffers is not None:
        buffers.keep(task.keep, examples, where)
    if buffer is not None and buffers is not None:
        held = buffers.examples(buffer, where)
        return _examples(where, task, program, contract, held)
    if task.feed in ("announced", "noise"):
        return _examples(where, task, program, contract, examples)
    if task.feed not in feeds or len(feeds[task.feed]) == 0:
        raise DataError(
            f"{where}: this device has no {task.feed!r} data", hint="give the device a source that holds it"
        )
    return contract, feeds[task.feed]


def _noise(where: str, task: Task, program: Program) -> dict[str, Array]:
    features = next((i for i in program.inputs if i.source == "features"), None)
    if features is None or not features.dtype.startswith("float"):
        raise InputError(f"{where}: feed 'noise': the program takes no floating-point features")
    shape = [n for n in features.shape[1:] if isinstance(n, int)]
    if len(shape) != len(features.shape) - 1:
        raise InputError(f"{where}: feed 'noise': the shape of an example is {list(features.shape[1:])}, not fixed")
    assert task.seed is not None  # checked by `edgefl.feeds.fault`
    return {FEATURES: normals(task.seed, [task.batch_size, *shape])}


def _examples(
    where: str, task: Task, program: Program, contract: DataContract, examples: Tensors
) -> tuple[DataContract, Dataset]:
    """The tensors "x" and "y" as data, in the shapes and dtypes of the program's own inputs.

    Floating-point "x" is taken as it is: whoever announces dreams makes them in the program's input space.
    uint8 "x" are pixels and normalised like the device's own.
    """
    inputs = [i for i in program.inputs if i.source == "features"]
    labels = next((i for i in program.inputs if i.source == "labels"), None)
    if len(inputs) > 1:
        raise InputError(f"{where}: feed {task.feed!r} is one array, and the program takes {len(inputs)} features")
    if FEATURES not in examples or (labels is not None and LABELS not in examples):
        missing = LABELS if FEATURES in examples else FEATURES
        raise InputError(f"{where}: feed {task.feed!r} needs the tensor {missing!r}, which was not announced")
    x = examples[FEATURES]
    y = np.zeros(len(np.atleast_1d(x)), np.int64) if labels is None else examples[LABELS]
    feature = next((f for f in contract.features for i in inputs if i.feature == f.name), contract.features[0])
    feature = msgspec.structs.replace(
        feature,
        shape=_example_shape(inputs[0], x) if inputs else feature.shape,
        dtype=inputs[0].dtype if inputs else feature.dtype,
        range=feature.range if x.dtype == np.uint8 else None,
        normalisation=feature.normalisation if x.dtype == np.uint8 else Normalisation(),
    )
    contract = msgspec.structs.replace(
        contract,
        features=(feature,),
        labels=() if labels is None else _example_shape(labels, y),
        labels_dtype="int64" if labels is None else labels.dtype,
        classes=contract.classes if labels is not None and labels.dtype == contract.labels_dtype else None,
        class_names=(),
    )
    return contract, fit_to_contract(Dataset(x, y), contract, f"{where}: {task.feed} data")


def _example_shape(described: Input, array: Array) -> tuple[int, ...]:
    """The shape of one example; dimensions known only at run time are the array's own."""
    wanted = described.shape[1:]
    got = array.shape[1:] if len(array.shape) == len(described.shape) else (0,) * len(wanted)
    return tuple(g if isinstance(w, str) else w for w, g in zip(wanted, got, strict=True))


def _loads(where: str, task: Task, manifest: Manifest, announced: Tensors) -> dict[str, str]:
    """Announced name -> state tensor. A pattern passes over what this bundle has not: other bundles of the run may."""
    state = {tensor.public_name: tensor for tensor in manifest.state}
    for name in task.load:
        if name in announced and name not in state:
            raise InputError(f"{where}: announced {name!r} is no state tensor of bundle {manifest.name!r}")
    names = _matches(where, "load", task.load, [name for name in announced if name in state])
    for name in names:
        got, want = announced[name], state[name]
        if got.dtype != np.dtype(want.dtype) or got.shape != want.shape:
            raise InputError(
                f"{where}: announced {name!r} is {got.dtype} {list(got.shape)}; "
                f"expected {want.dtype} {list(want.shape)}",
                hint="does the aggregator use the same bundle?",
            )
    return {name: state[name].name for name in names}


def _sends(where: str, task: Task, program: Program, manifest: Manifest) -> tuple[dict[str, str], tuple[str, ...]]:
    """Fusion group -> state tensor to send, and names of outputs to send. Local state never matches: it never leaves
    the device.

    A pattern reaches a metric only by its exact name, because metrics are reported anyway.
    """
    shared = manifest.fusion_map()
    outputs = {output.name: output for output in program.outputs if output.name not in shared}
    for pattern in task.send:
        local = [t.name for t in manifest.state if t.name == pattern and t.fuse == "local"]
        if local and pattern not in outputs:
            raise InputError(f"{where}: {pattern!r} is local: it never leaves the device")
    offered = [*shared, *(name for name, o in outputs.items() if not o.is_metric or name in task.send)]
    names = _matches(where, "send", task.send, offered)
    state = {name: shared[name].name for name in names if name in shared}
    if task.send_as == "delta":
        for name in state:
            if shared[name].dtype in ("bool", "uint8"):
                raise InputError(f"{where}: {name!r} is {shared[name].dtype}, which has no delta; send it as value")
    return state, tuple(name for name in names if name in outputs)


def _matches(where: str, what: str, globs: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    """The names that any glob matches. One that matches nothing may be of another bundle of the run; all may not, nor
    a plain name to reset."""
    for glob in globs:
        plain = what == "reset" and not any(c in glob for c in "*?[")  # "optimizer.*" where there is no momentum
        alone = what != "reset" and not select(names, globs)
        if (plain or alone) and not select(names, [glob]):
            raise InputError(f"{where}: {what} {glob!r} matches no tensor")
    return tuple(select(names, globs))


def all_settings(*, own: Mapping[str, float], of_class: Mapping[str, float]) -> dict[str, float]:
    """The settings that count more than a task's: a device's own, and those of its class where it has none itself."""
    return {**of_class, **own}


def check_own_settings(own: Mapping[str, float], manifest: Manifest) -> None:
    """Raises InputError for a setting of the device's own that no program of the bundle has."""
    known = {i.name for program in manifest.programs.values() for i in program.inputs if i.source == "setting"}
    for name in own:
        if name not in known:
            raise InputError(
                f"this device sets {name!r}, but no program of bundle {manifest.name!r} has such a setting",
                hint=f"there is: {', '.join(sorted(known)) or 'none'}",
            )


def _settings(where: str, task: Task, program: Program, own: Mapping[str, float]) -> dict[str, Array]:
    """Every scalar input of the program as an array: the device's own, else the task's, else the manifest's default."""
    inputs = {i.name: i for i in program.inputs if i.source == "setting"}
    for name in task.settings:
        if name not in inputs:
            known = ", ".join(inputs) or "none"
            raise InputError(f"{where}: unknown setting {name!r}; the program has {known}")
    arrays: dict[str, Array] = {}
    for name, described in inputs.items():
        value = own.get(name, task.settings.get(name, described.default))
        if value is None:
            raise InputError(f"{where}: setting {name!r} is missing and has no default")
        dtype = np.dtype(described.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            number = np.array(value).astype(dtype)
        if not np.isfinite(number) or (dtype.kind != "f" and number != value):
            raise InputError(f"{where}: setting {name!r} is {value}; expected a finite {dtype}")
        arrays[name] = np.full([n if isinstance(n, int) else 1 for n in described.shape], number)
    return arrays
