"""What a bundle asks of devices: counted on its programs, timed here, and carried over to devices that are not here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgefl.bundle import Bundle
from edgefl.costs import multiply_adds, peak_bytes
from edgefl.doctor.devices import Device
from edgefl.doctor.speed import Speed
from edgefl.errors import InputError
from edgefl.shapes import Graph, read_graph

BATCH_SIZES = (1, 8, 16, 32, 64)
COUNTED_AT = 8  # multiply-adds per example are those of a batch of this size, divided
# `edgefl device` before it has a bundle: Python, onnxruntime, MQTT, the command line (docs/doctor.md).
PROCESS_BYTES = 85_000_000
# onnxruntime needs more than the tensors alive: its arena has gaps, its kernels have buffers of their own, and it may
# run nodes in another order. Measured on the zoo: docs/doctor.md.
ARENA_FACTOR, ARENA_BYTES = 1.5, 17_000_000
LARGEST_BATCH = 1024


@dataclass(frozen=True)
class ProgramCost:
    """One program: its file, its operators, and multiply-adds for each example."""

    size_bytes: int
    operators: dict[str, int]
    multiply_adds: int


@dataclass(frozen=True)
class MemoryCost:
    """A training process at one batch size, in bytes.

    tensors    the most alive at once inside the step, counted
    process    all of `edgefl device`: tensors with the arena's allowance, state twice, what is received and sent,
               the data set, Python and onnxruntime
    """

    batch_size: int
    tensors: int
    process: int


@dataclass(frozen=True)
class Costs:
    """What can be counted without running a step for time."""

    parameters: int
    trained: int
    state_bytes: int
    upload_bytes: dict[str, int]  # by encoding
    programs: dict[str, ProgramCost]
    memory: tuple[MemoryCost, ...]


@dataclass(frozen=True)
class Verdict:
    """One device: does it fit, how long does an epoch take (least and most, in seconds), what would have to change."""

    device: str
    about: str
    fits: bool
    memory_bytes: int
    needs_bytes: int
    largest_batch: int
    epoch_s: tuple[float, float]
    advice: tuple[str, ...]


def count(bundle: Bundle, examples: int) -> tuple[Costs, Graph]:
    """The bundle's costs with a data set of `examples`, and the graph of its train program."""
    manifest, weights = bundle.manifest, bundle.weights()
    if "train" not in manifest.programs:
        raise InputError(f"bundle {manifest.name!r} has no program 'train'", hint="export it again, with all programs")
    graphs = {name: read_graph(p, bundle.program_bytes(name), weights) for name, p in manifest.programs.items()}
    train = graphs["train"]
    shared = {t.name: t.size_bytes for t in manifest.shared()}
    floats = sum(t.size_bytes for t in manifest.shared() if t.dtype == "float32")
    written = manifest.programs["train"].writes
    costs = Costs(
        parameters=sum(math.prod(t.shape) for t in manifest.state if t.role == "parameter"),
        trained=sum(math.prod(t.shape) for t in manifest.state if t.role == "parameter" and t.name in written),
        state_bytes=sum(t.size_bytes for t in manifest.state),
        upload_bytes={"float32": sum(shared.values()), "float16": sum(shared.values()) - floats // 2},
        programs={
            name: ProgramCost(
                manifest.programs[name].file.size_bytes,
                dict(sorted(Counter(node.kind for node in graph.nodes).items())),
                multiply_adds(graph, graph.batch or COUNTED_AT) // (graph.batch or COUNTED_AT),
            )
            for name, graph in graphs.items()
        },
        memory=tuple(
            MemoryCost(size, peak_bytes(train, size), process_bytes(bundle, train, size, examples))
            for size in ((train.batch,) if train.batch else BATCH_SIZES)
        ),
    )
    return costs, train


def process_bytes(bundle: Bundle, train: Graph, batch_size: int, examples: int) -> int:
    """All memory of a device process that trains with this batch size on so many examples."""
    state = sum(t.size_bytes for t in bundle.manifest.state)
    written = sum(t.size_bytes for t in bundle.manifest.state if t.name in bundle.manifest.programs["train"].writes)
    exchanged = 2 * sum(t.size_bytes for t in bundle.manifest.shared())
    data = data_bytes(bundle, examples)
    return PROCESS_BYTES + state + written + exchanged + data + step_bytes(train, batch_size)


def step_bytes(train: Graph, batch_size: int) -> int:
    """What a step makes a process grow by: the tensors counted, and the runtime's allowance."""
    return round(ARENA_FACTOR * peak_bytes(train, batch_size)) + ARENA_BYTES


def data_bytes(bundle: Bundle, examples: int) -> int:
    """The features of so many examples in the contract's dtype (pixels in uint8 take a quarter of float32)."""
    features = bundle.manifest.data.features
    return examples * sum(math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in features)


def judge(
    name: str,
    device: Device,
    bundle: Bundle,
    train: Graph,
    *,
    batch_size: int,
    examples: int,
    step_s: float,
    here: Speed,
) -> Verdict:
    """Carry a step of `step_s` seconds on one core here over to the device, and compare its memory."""
    room = round(device.memory_mb * 1e6)
    needs = process_bytes(bundle, train, batch_size, examples)
    largest = largest_batch(bundle, train, examples, room)
    steps = math.ceil(examples / batch_size)
    least, most = slower(device, here, arithmetic_share(train, batch_size, step_s, here))
    return Verdict(
        name,
        device.about,
        needs <= room,
        room,
        needs,
        largest,
        (steps * step_s * least, steps * step_s * most),
        () if needs <= room else tuple(_advice(bundle, train, examples, batch_size, largest, room)),
    )


def slower(device: Device, here: Speed, arithmetic: float) -> tuple[float, float]:
    """How many times longer a step takes on the device: (least, most).

    Least: its best figures, with the part of the step that multiplies going with the speed of multiplying and the
    rest with the speed of memory. Most: its worst figures, and the whole step goes with the slower of the two.
    """
    multiplying = [here.gflops / speed for speed in device.gflops]
    copying = [here.copy_gb_s / speed for speed in device.copy_gb_s]
    return arithmetic * multiplying[1] + (1 - arithmetic) * copying[1], max(multiplying[0], copying[0])


def arithmetic_share(train: Graph, batch_size: int, step_s: float, here: Speed) -> float:
    """The part of a step's time, 0..1, that its multiply-adds need at this machine's best speed."""
    return min(1.0, 2 * multiply_adds(train, batch_size) / (here.gflops * 1e9) / step_s)


def largest_batch(bundle: Bundle, train: Graph, examples: int, room: int) -> int:
    """The largest batch size that fits into `room` bytes, up to LARGEST_BATCH; 0 when not even 1 does."""
    if train.batch:
        return train.batch if process_bytes(bundle, train, train.batch, examples) <= room else 0
    low, high = 0, LARGEST_BATCH
    while low < high:
        middle = (low + high + 1) // 2
        if process_bytes(bundle, train, middle, examples) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _advice(bundle: Bundle, train: Graph, examples: int, batch_size: int, largest: int, room: int) -> Iterator[str]:
    """What would have to change, most effective first, for a bundle that does not fit."""
    if largest and not train.batch:
        yield f"train with batches of at most {largest} instead of {batch_size}"
    smallest = train.batch or 1
    left = room - process_bytes(bundle, train, smallest, 0)
    if not largest and left > 0:
        yield f"keep at most {left // data_bytes(bundle, 1):,} examples on the device instead of {examples:,}"
    if head := _head(bundle):
        yield f"train the last layer alone (--train '{head}.*' at export): what comes before needs no gradients"
    if left <= 0:
        yield f"choose a smaller model (edgefl zoo): not even a batch of {smallest} fits"


def _head(bundle: Bundle) -> str:
    """The module of the last trained parameter, "" where there is no other module."""
    written = bundle.manifest.programs["train"].writes
    modules = [t.name.rpartition(".")[0] for t in bundle.manifest.state if t.role == "parameter" and t.name in written]
    return modules[-1] if modules and modules[-1] not in ("", modules[0]) else ""
