"""A PyTorch model becomes a bundle: take apart, define programs, lower each, prove each, write."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime
import torch
from torch import Tensor

import edgefl
from edgefl import bundle
from edgefl.bundle import Bundle, DataContract, File, Manifest, Normalisation, Parity, Program, StateTensor
from edgefl.errors import InputError, LoweringError
from edgefl.tensors import Tensors
from edgefl_exporter.losses import LOSSES, CrossEntropy
from edgefl_exporter.lowering import lower
from edgefl_exporter.model import DTYPES, Parts, take_apart
from edgefl_exporter.optimizers import SGD, Optimizer
from edgefl_exporter.parity import prove
from edgefl_exporter.programs import classify
from edgefl_exporter.programs.program import Definition

PROGRAMS = ("train", "evaluate", "predict")
_NO_FILE = File("", "", 0)
_UNPROVEN = Parity("", 0.0, {})


def export(
    model: object,
    example_input: Tensor,
    *,
    out: Path,
    name: str,
    loss: str = "cross_entropy",
    optimizer: Optimizer = SGD(),  # noqa: B008  (frozen)
    programs: Sequence[str] = PROGRAMS,
    method: str = "fedavg",
    normalisation: Normalisation = Normalisation(),  # noqa: B008  (frozen)
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Lower `model` to training programs, prove them against PyTorch, and write a bundle to the directory `out`.

    `example_input` is a batch [batch, ...]; its shape and dtype become the data contract. The model is left as it
    was. Parameters with requires_grad=False are kept but not trained. Equal models, seeds and versions give equal
    bytes. Raises LoweringError for a model that cannot become a program, ParityError for a program that does not
    compute what PyTorch computes; either way nothing is written.
    """
    tell = progress or (lambda line: None)
    _check_normalisation(normalisation, example_input)
    parts = take_apart(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes = _check_model(parts, example_input, loss)
        contract = DataContract(
            features=tuple(example_input.shape[1:]),
            dtype=DTYPES[example_input.dtype],
            classes=classes,
            normalisation=normalisation,
        )
        state = parts.parameters | parts.buffers | optimizer.moments({n: parts.parameters[n] for n in parts.trained})
        entries: dict[str, Program] = {}
        files: dict[str, bytes] = {}
        golden: dict[str, Tensors] = {}
        for definition in _define(programs, parts, example_input, LOSSES[loss], optimizer, classes):
            tell(f"{definition.name}: lowering")
            data = _lower(definition, state, example_input, parts)
            entry = _entry(definition, data)
            tell(f"{definition.name}: proving against PyTorch")
            parity, golden[definition.name] = prove(definition, entry, data, state, contract, seed)
            tell(f"{definition.name}: {len(data):,} bytes, worst relative error {parity.worst:.1e}")
            files[definition.name] = data
            entries[definition.name] = _proven(entry, parity)
    manifest = Manifest(
        format=bundle.FORMAT,
        name=name,
        method=method,
        made_by=f"edgefl {edgefl.__version__}, torch {torch.__version__.split('+')[0]}, "
        f"onnxruntime {onnxruntime.__version__}",
        data=contract,
        state=_state(parts, state),
        programs=entries,
        weights=_NO_FILE,
    )
    weights = {key: value.numpy() for key, value in state.items()}
    return bundle.write(out, manifest, weights=weights, programs=files, golden=golden)


def _check_normalisation(normalisation: Normalisation, x: Tensor) -> None:
    """Raises InputError unless mean and std are one number, or one for each channel, and can be used."""
    channels = x.shape[1] if x.dim() > 1 else 1
    for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} numbers; expected 1, or {channels}: one for each channel")
        if not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
            raise InputError(f"{name} is {', '.join(map(str, values))}; expected finite numbers, std above 0")


def _check_model(parts: Parts, x: Tensor, loss: str) -> int:
    """The number of classes. Raises LoweringError for a model or an input that the programs cannot use."""
    if loss not in LOSSES:
        raise LoweringError(f"unknown loss {loss!r}", hint=f"one of: {', '.join(LOSSES)}")
    if x.dim() < 1 or x.shape[0] < 1 or x.dtype not in DTYPES:
        raise LoweringError(f"the example input is {x.dtype} {list(x.shape)}; expected a batch [batch, ...]")
    rows = torch.cat([x] * 2)
    try:
        module = parts.load(parts.parameters | parts.buffers).eval()
        with torch.no_grad():
            output = module(rows)
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise LoweringError(
            f"the model fails on an input of shape {list(rows.shape)}: {type(error).__name__}: {line}",
            hint="is the example input's shape [batch, ...] right?",
        ) from error
    classes = LOSSES[loss].check(output)
    if output.shape[0] != rows.shape[0]:
        raise LoweringError(
            f"the model turns {rows.shape[0]} examples into {output.shape[0]} rows of logits; expected one row each",
            hint="keep the first dimension for the batch",
        )
    if not bool(output.isfinite().all()):
        raise LoweringError(
            "the model gives values that are not finite on the example input",
            hint="look for a division by zero, or the log or square root of something not positive",
        )
    return classes


def _define(
    programs: Sequence[str], parts: Parts, x: Tensor, loss: CrossEntropy, optimizer: Optimizer, classes: int
) -> list[Definition]:
    """The definitions of the named programs."""
    makers: dict[str, Callable[[], Definition]] = {
        "train": lambda: classify.train(parts, x, loss, optimizer),
        "evaluate": lambda: classify.evaluate(parts, x, loss),
        "predict": lambda: classify.predict(parts, x, classes),
    }
    for program in programs:
        if program not in makers:
            raise LoweringError(f"unknown program {program!r}", hint=f"of: {', '.join(makers)}")
    return [makers[program]() for program in programs]


def _lower(definition: Definition, state: dict[str, Tensor], x: Tensor, parts: Parts) -> bytes:
    inputs = {
        "features": x,
        "labels": torch.zeros(len(x), dtype=torch.int64),
        "setting": torch.tensor(0.1),
    }
    names = {entry.name for entry in definition.inputs}
    if clash := sorted(names & state.keys()):
        raise LoweringError(f"a parameter or buffer is called {clash[0]!r}, as an input is", hint="rename it")
    example = {entry.name: inputs[entry.source] for entry in definition.inputs} | state
    batched = {entry.name for entry in definition.inputs if entry.source != "setting"}
    return lower(definition.step, example, batched=batched, module=parts.module)


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


def _proven(entry: Program, parity: Parity) -> Program:
    return Program(entry.file, entry.inputs, entry.outputs, entry.reads, entry.writes, parity, entry.golden)


def _state(parts: Parts, state: dict[str, Tensor]) -> tuple[StateTensor, ...]:
    """Parameters and float buffers are averaged; counters and moments stay on the device."""
    tensors = []
    for name, value in state.items():
        role: Literal["parameter", "buffer", "optimizer"] = (
            "parameter" if name in parts.parameters else "buffer" if name in parts.buffers else "optimizer"
        )
        shared = role != "optimizer" and value.is_floating_point()
        tensors.append(StateTensor(name, DTYPES[value.dtype], tuple(value.shape), role, "mean" if shared else "local"))
    return tuple(tensors)
