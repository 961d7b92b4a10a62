"""What a model asks of a device, as one verb: export it for the occasion, count, time a step here, judge."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgefl.bundle import Bundle, read
from edgefl.doctor.devices import DEVICES
from edgefl.doctor.diagnosis import Costs, Verdict, count, judge
from edgefl.doctor.speed import Speed, best_seconds, measure_speed
from edgefl.errors import EdgeflError, InputError, LoweringError, ParityError
from edgefl.manifest import MANIFEST
from edgefl.shapes import Graph, example_inputs

PROGRAMS = ("train", "evaluate", "predict")
TIMED_STEPS = 10
CURVE_POINTS = 5  # at most


@dataclass(frozen=True)
class Spent:
    """What one train program of `edgefl export --memory` takes, measured here: memory in its first steps, and time.

    again           forward tensors that it makes again instead of keeping them; 0: the plain program
    counted_bytes   the most of its tensors alive at once, in the order that onnxruntime takes
    grown_bytes     by how much a process grows
    step_s          the shortest step
    """

    again: int
    counted_bytes: int
    grown_bytes: int
    step_s: float


@dataclass(frozen=True)
class Examined:
    """What a model asks of devices, and whether it fits each of them.

    here, step_s    this machine's speed, and the seconds of a training step of `batch_size` on one core of it
    examples        in a device's data set
    memory_curve    where it was asked for: from the plain program to the least
    """

    bundle: Bundle
    costs: Costs
    here: Speed
    step_s: float
    batch_size: int
    examples: int
    verdicts: list[Verdict]
    memory_curve: tuple[Spent, ...] = ()


class Refused(Exception):
    """What lowers and what does not: program -> its error, None where there is none."""

    def __init__(self, model: str, programs: dict[str, EdgeflError | None]) -> None:
        super().__init__(model)
        self.model = model
        self.programs = programs

    @property
    def exit_code(self) -> int:
        return next(error.exit_code for error in self.programs.values() if error)


def examine(
    model: str,
    *,
    device: str | None = None,
    examples: int = 1000,
    batch_size: int = 32,
    shape: str | None = None,
    loss: str | None = None,
    train: str | None = None,
    memory_curve: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Examined:
    """What `model` (FILE:OBJECT, zoo:NAME or a bundle) asks of a device, or of all that are known.

    shape       of one example ("1x8x8"), where the model gives only a module; loss, train: as of `edgefl export`; a
                bundle has its own
    memory_curve  time against memory, measured in some processes of their own; on Linux

    Raises Refused where it cannot be lowered or is not proven, InputError.
    """
    with _bundle(model, shape, loss, train, progress) as bundle:
        return _examine(bundle, device, examples, batch_size, memory_curve, progress)


@contextlib.contextmanager
def _bundle(
    model: str, shape: str | None, loss: str | None, train: str | None, tell: Callable[[str], None]
) -> Iterator[Bundle]:
    """The bundle MODEL names, or one made for the occasion. Raises Refused."""
    if (Path(model) / MANIFEST).is_file():
        if shape or loss or train:
            raise InputError("--input, --loss and --train are for a model; a bundle has its own")
        yield read(model)
        return
    if ":" not in model:
        raise InputError(f"{model!r} is no bundle, FILE:OBJECT or zoo:NAME", hint="for example zoo:digits")
    from edgefl.runs.sections import bundle_name
    from edgefl_exporter import export_source

    options = {"input": shape, "loss": loss, "train": train}
    given = {name: value for name, value in options.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:

        def attempt(*programs: str) -> Bundle:
            out = Path(folder) / "model.bundle"
            return export_source(model, {**given, "programs": programs}, out, bundle_name(model), progress=tell)

        def error(program: str) -> EdgeflError | None:
            try:
                attempt(program)
            except (LoweringError, ParityError) as error:
                return error
            return None

        try:
            bundle = attempt(*PROGRAMS)
        except (LoweringError, ParityError):
            raise Refused(model, {name: error(name) for name in PROGRAMS}) from None
        yield bundle


def _examine(
    bundle: Bundle,
    device: str | None,
    examples: int,
    batch_size: int,
    memory_curve: bool,
    tell: Callable[[str], None],
) -> Examined:
    tell("counting work and memory")
    costs, train = count(bundle, examples)
    batch_size = train.batch or min(batch_size, examples)
    tell(f"timing steps of {batch_size} on this machine")
    here, step_s = measure_speed(), _step_seconds(bundle, batch_size)
    verdicts = [
        judge(
            name,
            DEVICES[name],
            bundle,
            train,
            batch_size=batch_size,
            examples=examples,
            step_s=step_s,
            here=here,
        )
        for name in ([device] if device else DEVICES)
    ]
    spent = tuple(_spent(bundle, train, batch_size, tell)) if memory_curve else ()
    return Examined(bundle, costs, here, step_s, batch_size, examples, verdicts, spent)


def _spent(bundle: Bundle, train: Graph, batch_size: int, tell: Callable[[str], None]) -> Iterator[Spent]:
    """Some programs from the plain one to the least, evenly along the curve."""
    from edgefl_exporter.memory.curve import curve
    from edgefl_exporter.memory.growth import measure
    from edgefl_exporter.memory.training import take_apart
    from edgefl_exporter.memory.write import write

    program, data, weights = bundle.manifest.program("train"), bundle.program_bytes("train"), bundle.weights()
    points = curve(take_apart(train, program, batch_size))
    last = len(points) - 1
    for index in sorted({round(part * last / (CURVE_POINTS - 1)) for part in range(CURVE_POINTS)}):
        point = points[index]
        tell(f"measuring with {len(point.chosen)} tensors made again")
        growth = measure(program, write(data, point.program) if index else data, weights, batch_size)
        yield Spent(len(point.chosen), point.peak_bytes, growth.grown_bytes, growth.step_s)


def _step_seconds(bundle: Bundle, batch_size: int) -> float:
    """The shortest of some training steps, driven as a device drives them, on one core."""
    from edgefl_device.engines.runtime import Runtime

    runtime = Runtime(bundle)
    inputs = example_inputs(bundle.manifest.program("train"), batch_size)
    return best_seconds(lambda: runtime.step("train", inputs), tries=TIMED_STEPS)
