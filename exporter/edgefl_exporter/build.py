"""A PyTorch model becomes a bundle: take apart, define programs, lower each, prove each, write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx
import onnxruntime
import torch
from torch import Tensor

import edgefl
from edgefl import bundle
from edgefl.bundle import Bundle
from edgefl.data_contract import UNIT, DataContract, Feature, Normalisation, check_class_names
from edgefl.errors import InputError, LoweringError, said
from edgefl.manifest import (
    FORMAT,
    PORTABLE,
    File,
    Manifest,
    Parity,
    Program,
    StateTensor,
    Target,
    select,
)
from edgefl.replay import Runner, Runs
from edgefl.tensors import Tensors
from edgefl.training_artifacts import ENGINE
from edgefl_exporter.class_names import read_class_names
from edgefl_exporter.lowering.check import check
from edgefl_exporter.lowering.lower import lower
from edgefl_exporter.memory.budget import budget_of
from edgefl_exporter.memory.fit import BATCH, fit
from edgefl_exporter.methods.method import Method
from edgefl_exporter.models.parts import DTYPES, Parts, take_apart
from edgefl_exporter.models.randomness import with_randomness
from edgefl_exporter.programs.losses import LOSSES, Labels, Loss, Structured
from edgefl_exporter.programs.optimizers import SGD
from edgefl_exporter.programs.program import Definition
from edgefl_exporter.programs.samples import samples_of
from edgefl_exporter.programs.supervised import Supervised
from edgefl_exporter.programs.update import Update
from edgefl_exporter.proof.prove import prove
from edgefl_exporter.recipe import Recipe
from edgefl_exporter.targets import onnxruntime_training
from edgefl_exporter.targets.onnxruntime_training import Made
from edgefl_exporter.torch_internals import AnyBatchNorm, layers_as_written

TRAIN = "train"  # the program that a memory budget is for
_NO_FILE = File("", "", 0)
FILLED = 16  # different values of an example input that say something of its range
_UNPROVEN = Parity("", 0.0, {})


def export(
    model: object,
    example_input: Tensor,
    *,
    out: str | Path,
    name: str,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Bundle:
    """Lower `model` to training programs, prove them against PyTorch, and write a bundle to the directory `out`.

    `options` are the fields of a `Recipe`, such as loss, optimizer, train and method, and described there. Raises
    InputError for an unknown one, and what `build` raises.
    """
    return build(Recipe.of(**options), model, example_input, out=out, name=name, progress=progress)


def build(
    recipe: Recipe,
    model: object,
    example_input: Tensor,
    *,
    out: str | Path,
    name: str,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Make a bundle of a model as the recipe says, and write it to the directory `out`.

    `example_input` is a batch [batch, ...]; its shape and dtype become the data contract. The model is left as it
    was. Equal models, recipes and versions give equal bytes, but for what a memory budget measures.

    Raises LoweringError for a model that cannot become a program, ParityError for a program that does not compute what
    PyTorch computes, InputError for a choice that makes no sense; in each case nothing is written.
    """
    tell = progress or (lambda line: None)
    recipe, method = recipe.complete()
    seed, target = recipe.seed, recipe.target
    python = onnxruntime_training.check(recipe.training_python, recipe.programs) if target == ENGINE else None
    _check_normalisation(recipe.normalisation, example_input)
    _check_range(recipe.range)
    budget = _budget(recipe)
    update = _update(recipe, method)
    model = method.model(model, example_input, recipe)
    with torch.random.fork_rng(devices=[]), layers_as_written():
        torch.manual_seed(seed)
        parts = take_apart(with_randomness(model, example_input), train=recipe.train, lora=recipe.lora)
        chosen = _loss_named(recipe.loss)
        if isinstance(parts.module, Structured):
            chosen = parts.module.read_by(chosen)
        kind = _check_model(parts, example_input, chosen)
        task = Supervised(parts, samples_of(parts.module, example_input, chosen, kind), update, recipe.batch)
        _check_batch(task)
        update.check(task.used)
        if idle := [name for name in parts.trained if name not in task.used]:
            tell(f"left as they are, because the loss does not depend on them: {', '.join(idle)}")
        class_names = _class_names(recipe, kind)
        contract = DataContract(
            features=(
                Feature(
                    tuple(example_input.shape[1:]),
                    DTYPES[example_input.dtype],
                    range=recipe.range or _range_of(example_input),
                    normalisation=recipe.normalisation,
                ),
            ),
            labels=kind.shape,
            labels_dtype=kind.dtype,
            classes=kind.classes,
            class_names=class_names,
        )
        definitions = [*_define(task, recipe.programs), *(make(task) for make in recipe.own_programs)]
        brought = {name: value for definition in definitions for name, value in definition.brings.items()}
        _check_brought(brought, parts)
        state = parts.parameters | parts.buffers | brought | update.state(task.used)
        entries: dict[str, Program] = {}
        files: dict[str, bytes] = {}
        golden: dict[str, Tensors] = {}
        for number, definition in enumerate(definitions, 1):
            about = f"{definition.name} ({number} of {len(definitions)})"
            tell(f"{about}: lowering")
            data = _lower(definition, state, task)
            entry = _entry(definition, data)
            if definition.name == TRAIN and budget is not None:
                tell(f"{about}: to a memory budget")
                arrays = {key: value.numpy() for key, value in state.items()}
                data, memory = fit(entry, data, arrays, budget, _memory_batch(recipe), tell)
                check(onnx.load_from_string(data), data)
                entry = msgspec.structs.replace(entry, memory=memory)
            tell(f"{about}: proving against PyTorch")
            parity, golden[definition.name] = prove(definition, entry, Runner(data), state, task.samples, seed)
            tell(f"{about}: {len(data):,} bytes, worst relative error {parity.worst:.1e}")
            files[definition.name] = data
            entries[definition.name] = msgspec.structs.replace(entry, parity=parity)
        weights = {key: value.numpy() for key, value in state.items()}
        others: dict[str, Made] = {}
        if python is not None:

            def proven(name: str, runner: Runs) -> Parity:
                tell(f"{name}: proving for {target}")
                (definition,) = (one for one in definitions if one.name == name)
                return prove(definition, entries[name], runner, state, task.samples, seed)[0]

            others[target] = onnxruntime_training.make(python, entries, files, tuple(task.used), weights, proven)
    manifest = Manifest(
        format=FORMAT,
        name=name,
        method=method.name,
        made_by=f"edgefl {edgefl.__version__}, torch {torch.__version__.split('+')[0]}, "
        f"onnxruntime {onnxruntime.__version__}",
        data=contract,
        state=_state(task, state, brought, recipe),
        programs=entries,
        weights=_NO_FILE,
        targets={engine: Target((), made.parity) for engine, made in others.items()},
    )
    more = {engine: made.files for engine, made in others.items()}
    return bundle.write(Path(out), manifest, weights=weights, programs=files, golden=golden, targets=more)


def _update(recipe: Recipe, method: Method) -> Update:
    """What happens to gradients; SGD with the method's numbers where nobody chose an optimizer."""
    optimizer = recipe.optimizer or SGD(**method.sgd())
    return Update(
        optimizer,
        tuple(recipe.groups),
        recipe.clip_norm,
        recipe.proximal,
        recipe.micro_batches,
        recipe.controls,
        recipe.shifts,
    )


def _loss_named(loss: str | Loss) -> Loss:
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise LoweringError(f"unknown loss {loss!r}", hint=f"one of: {', '.join(LOSSES)}")
    return LOSSES[loss]


def _check_normalisation(normalisation: Normalisation, x: Tensor) -> None:
    """Raises InputError unless mean and std are one number, or one for each channel, and can be used."""
    channels = x.shape[1] if x.dim() > 1 else 1
    for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} numbers; expected 1, or {channels}: one for each channel")
        if not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
            raise InputError(f"{name} is {', '.join(map(str, values))}; expected finite numbers, std above 0")


def _check_range(stated: tuple[float, float] | None) -> None:
    """Raises InputError unless the lower number comes first."""
    if stated is not None and not (all(map(math.isfinite, stated)) and stated[0] < stated[1]):
        raise InputError(f"the range is {stated[0]:g}..{stated[1]:g}; expected two finite numbers, the lower one first")


def _budget(recipe: Recipe) -> int | None:
    """The memory budget of a step in bytes. Raises InputError for one that cannot be, or has nothing to hold for."""
    budget = budget_of(recipe.memory)
    if budget is None:
        if recipe.memory_batch is not None:
            raise InputError("--memory-batch is of --memory", hint="say --memory too, or leave it out")
        return None
    if TRAIN not in recipe.programs:
        raise InputError(f"--memory is of the program {TRAIN!r}; the programs are {', '.join(recipe.programs)}")
    if recipe.target != PORTABLE:
        raise InputError(f"--memory is measured in the stock runtime, not in {recipe.target}", hint="leave one out")
    if recipe.batch is not None and recipe.memory_batch not in (None, recipe.batch):
        raise InputError(f"--memory-batch is {recipe.memory_batch}, and --batch {recipe.batch}", hint="leave one out")
    return budget


def _memory_batch(recipe: Recipe) -> int:
    return recipe.batch or recipe.memory_batch or BATCH


def _range_of(x: Tensor) -> tuple[float, float] | None:
    """0..1 where the example is filled with such values: noise and zeros, which stand for any data, are not."""
    values = set(x.flatten().tolist()) if x.is_floating_point() else set()
    return UNIT if len(values) >= FILLED and min(values) >= 0 and max(values) <= 1 else None


def _class_names(recipe: Recipe, kind: Labels) -> tuple[str, ...]:
    """Raises InputError unless they are as many as there are classes."""
    names = read_class_names(recipe.classes)
    if names:
        try:
            check_class_names(names, kind.classes)
        except ValueError as error:
            hint = f"name all {kind.classes} in their order" if kind.classes else "leave --classes out"
            raise InputError(f"--classes: {error}", hint=hint) from error
    return names


def _check_model(parts: Parts, x: Tensor, loss: Loss) -> Labels:
    """What labels the model's loss takes. Raises LoweringError for a model or an input that programs cannot use."""
    if x.dim() < 1 or x.shape[0] < 1 or x.dtype not in DTYPES:
        raise LoweringError(f"the example input is {x.dtype} {list(x.shape)}; expected a batch [batch, ...]")
    rows = torch.cat([x] * 2)
    try:
        module = parts.load(parts.parameters | parts.buffers).eval()
        with torch.no_grad():
            output = module(rows)
    except Exception as error:
        raise LoweringError(
            f"the model fails on an input of shape {list(rows.shape)}: {said(error)}",
            hint="is the example input's shape [batch, ...] right?",
        ) from error
    kind = loss.labels(output)
    for prediction in loss.predictions(output).values():
        if prediction.shape[0] != rows.shape[0]:
            raise LoweringError(
                f"the model turns {rows.shape[0]} examples into {prediction.shape[0]} rows; expected one row each",
                hint="keep the first dimension for the batch",
            )
        if not bool(prediction.isfinite().all()):
            raise LoweringError(
                "the model gives values that are not finite on the example input",
                hint="look for a division by zero, or the log or square root of something not positive",
            )
    return kind


def _check_batch(task: Supervised) -> None:
    """Raises InputError for a fixed batch size that cannot be, LoweringError where padding would count."""
    if task.batch is None:
        return
    if task.batch < 1:
        raise InputError(f"the batch size is {task.batch}; expected at least 1, or dynamic")
    for path, child in task.parts.module.named_modules():
        if isinstance(child, AnyBatchNorm) and path not in task.parts.frozen:
            raise LoweringError(
                f"module {path!r} is {type(child).__name__}: its statistics would count the padding of a short batch",
                hint="export with a dynamic batch, or use GroupNorm",
            )
    kind = task.samples.kind
    each = task.loss.each(task.output_of_two, task.loss.sample(kind, 2, torch.Generator()))
    if each.dim() == 0:
        raise LoweringError(
            "a fixed batch size needs a loss for each example", hint="return [batch] from the loss function"
        )


def _define(task: Supervised, programs: Sequence[str]) -> list[Definition]:
    """The definitions of the named programs."""
    makers: dict[str, Callable[[], Definition]] = {
        "train": task.train,
        "gradient": task.gradient,
        "evaluate": task.evaluate,
        "predict": task.predict,
    }
    for program in programs:
        if program not in makers:
            raise LoweringError(f"unknown program {program!r}", hint=f"of: {', '.join(makers)}")
        if program in ("train", "gradient") and not task.used:
            raise LoweringError(
                "nothing of the model trains: no parameter has requires_grad and takes part in the loss",
                hint="choose what trains with --train",
            )
    definitions = [makers[program]() for program in programs]
    if task.update.proximal is not None:
        definitions.append(task.anchor())
    return definitions


def _check_brought(brought: Mapping[str, Tensor], parts: Parts) -> None:
    """Raises LoweringError where state that a program brings has the name of a tensor of the model."""
    if clash := sorted(brought.keys() & {*parts.parameters, *parts.buffers}):
        raise LoweringError(
            f"a parameter or buffer is called {clash[0]!r}, as state of the method is", hint="rename it"
        )


def _lower(definition: Definition, state: dict[str, Tensor], task: Supervised) -> bytes:
    names = {entry.name for entry in definition.inputs}
    if clash := sorted(names & state.keys()):
        raise LoweringError(f"a parameter or buffer is called {clash[0]!r}, as an input is", hint="rename it")
    drawn = definition.draw(task.samples, 2, torch.Generator().manual_seed(0))
    batched = {e.name for e in definition.inputs if e.is_batched} if definition.batch is None else set()
    return lower(definition.step, drawn | state, batched=batched, module=task.parts.module)


def _entry(definition: Definition, data: bytes) -> Program:
    """The manifest's entry, with what the file really reads."""
    graph = onnx.load_from_string(data).graph
    used = [value.name for value in graph.input]
    given = {entry.name for entry in definition.inputs}
    produced = {value.name for value in graph.output}
    expected = {entry.name for entry in definition.outputs} | set(definition.writes.values())
    assert produced == expected, f"{definition.name}: {sorted(produced ^ expected)}"
    return Program(
        file=_NO_FILE,
        inputs=tuple(entry for entry in definition.inputs if entry.name in used),
        outputs=definition.outputs,
        reads=tuple(name for name in used if name not in given),
        writes=definition.writes,
        parity=_UNPROVEN,
        golden=_NO_FILE,
    )


def _state(
    task: Supervised,
    state: dict[str, Tensor],
    brought: Mapping[str, Tensor],
    recipe: Recipe,
) -> tuple[StateTensor, ...]:
    """What training changes is averaged, unless it is private: parameters and float buffers. What is announced travels
    as well; the optimizer's tensors stay on the device. Raises InputError for a pattern that matches nothing."""
    shared = {*task.used, *(name for name in task.changing if state[name].is_floating_point())}
    for what, patterns in (
        ("private", recipe.private),
        ("announced", recipe.announced),
        ("share_as", tuple(recipe.share_as)),
    ):
        for pattern in patterns:
            if not select(state, [pattern]):
                raise InputError(f"{what} {pattern!r} matches no tensor", hint=f"there is: {', '.join([*state][:8])}")
    shared -= set(select(state, recipe.private))
    shared |= {*select(state, recipe.announced), *task.update.announced(task.used)}
    tensors = []
    for name, value in state.items():
        role: Literal["parameter", "buffer", "optimizer"] = (
            "parameter"
            if name in task.parts.parameters
            else "buffer"
            if name in task.parts.buffers or name in brought
            else "optimizer"
        )
        fuse: Literal["mean", "local"] = "mean" if name in shared else "local"
        group = _group(name, recipe.share_as) if fuse == "mean" else ""
        tensors.append(StateTensor(name, DTYPES[value.dtype], tuple(value.shape), role, fuse, group))
    return tuple(tensors)


def _group(name: str, share_as: Mapping[str, str]) -> str:
    """The fusion group of a shared tensor where `share_as` names one, else ""."""
    for pattern, group in share_as.items():
        head, star, tail = pattern.partition("*")
        if name == pattern:
            return group
        if star and len(name) >= len(head) + len(tail) and name.startswith(head) and name.endswith(tail):
            return group.replace("*", name[len(head) : len(name) - len(tail)])
    return ""
