"""The command that says what a model asks of a device."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgefl.bundle import MANIFEST, Bundle, read
from edgefl.cli.export import parse_shape, parts
from edgefl.cli.output import format_option, print_json, print_table, working
from edgefl.doctor.devices import DEVICES
from edgefl.errors import EdgeflError, InputError, LoweringError, ParityError
from edgefl.results.report import size
from edgefl.runs.run_file import bundle_name

if TYPE_CHECKING:
    from edgefl.doctor.diagnosis import Costs, Verdict
    from edgefl.doctor.speed import Speed

PROGRAMS = ("train", "evaluate", "predict")
TIMED_STEPS = 10


@click.command()
@click.argument("model")
@click.option("--device", type=click.Choice(list(DEVICES)), help="Default: all.")
@click.option("--examples", type=click.IntRange(1), default=1000, show_default=True, help="In a device's data set.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--input", "shape", help="Shape of one example, e.g. 1x8x8, where MODEL gives only a module.")
@click.option("--loss", help="As of `edgefl export`; a bundle has its own.")
@click.option("--train", help="As of `edgefl export`, e.g. 'head.*'; a bundle has its own.")
@format_option
@click.pass_context
def doctor(
    context: click.Context,
    model: str,
    device: str | None,
    examples: int,
    batch_size: int,
    shape: str | None,
    loss: str | None,
    train: str | None,
    form: str,
) -> None:
    """Say what a model asks of a device: does it lower, work, memory, bytes to send, time for an epoch.

    MODEL is FILE:OBJECT, zoo:NAME or a bundle. Times on devices are estimates. Exit code: 0 it fits the device (without
    --device: one of them), 1 it does not, 3 it cannot be lowered, 6 the proof failed.

    \b
    Example:
      edgefl doctor zoo:resnet20 --device pi-4
    """
    with working(f"examining {model}") as tell:
        try:
            with _bundle(model, shape, loss, parts(train), tell) as bundle:
                result = _examine(bundle, device, examples, batch_size, tell)
        except _Refused as refused:
            _print_refusal(refused, form)
            context.exit(refused.exit_code)
    if form == "json":
        print_json(result.as_json(model))
    else:
        result.print()
    context.exit(0 if any(verdict.fits for verdict in result.verdicts) else 1)


@dataclass(frozen=True)
class _Result:
    bundle: Bundle
    costs: Costs
    here: Speed
    step_s: float
    batch_size: int
    examples: int
    verdicts: list[Verdict]

    def as_json(self, model: str) -> dict[str, Any]:
        return {
            "model": model,
            "lowers": True,
            **asdict(self.costs),
            "here": {**asdict(self.here), "step_s": self.step_s, "threads": 1},
            "batch_size": self.batch_size,
            "examples": self.examples,
            "devices": [asdict(verdict) for verdict in self.verdicts],
        }

    def print(self) -> None:
        costs, manifest = self.costs, self.bundle.manifest
        frozen = f", {costs.parameters - costs.trained:,} of them frozen" if costs.trained < costs.parameters else ""
        click.echo(f"{manifest.name}: {costs.parameters:,} parameters{frozen}; state {size(costs.state_bytes)}")
        click.echo("every operator lowers; proven against PyTorch\n")
        print_table(
            "Programs",
            ["program", "size", "multiply-adds per example", "operators"],
            [
                [name, size(program.size_bytes), _million(program.multiply_adds), _operators(program.operators)]
                for name, program in costs.programs.items()
            ],
        )
        click.echo()
        print_table(
            "Memory to train",
            ["batch size", "tensors of a step", "whole process"],
            [[str(m.batch_size), size(m.tensors), size(m.process)] for m in costs.memory],
        )
        click.echo(f"(whole process: `edgefl device` with {self.examples:,} examples in memory)")
        uploads = ", ".join(f"{size(count)} as {encoding}" for encoding, count in costs.upload_bytes.items())
        click.echo(f"\nupload per round: {uploads}\n")
        print_table(
            "Devices, estimated",
            ["device", "fits", "needs", "may use", "largest batch", "an epoch takes"],
            [
                [
                    v.device,
                    "yes" if v.fits else "no",
                    size(v.needs_bytes),
                    size(v.memory_bytes),
                    str(v.largest_batch),
                    f"{_seconds(v.epoch_s[0])} to {_seconds(v.epoch_s[1])}",
                ]
                for v in self.verdicts
            ],
        )
        click.echo(
            f"(an epoch: {self.examples:,} examples in batches of {self.batch_size}, on one core; here a step takes "
            f"{self.step_s * 1e3:.3g} ms on a core of {self.here.gflops:.0f} GFLOP/s that copies "
            f"{self.here.copy_gb_s:.1f} GB/s)"
        )
        for verdict in self.verdicts:
            for line in verdict.advice:
                click.echo(f"{verdict.device}: {line}")


class _Refused(Exception):
    """What lowers and what does not: program -> its error, None where there is none."""

    def __init__(self, model: str, programs: dict[str, EdgeflError | None]) -> None:
        super().__init__(model)
        self.model = model
        self.programs = programs

    @property
    def exit_code(self) -> int:
        return next(error.exit_code for error in self.programs.values() if error)


@contextlib.contextmanager
def _bundle(
    model: str, shape: str | None, loss: str | None, train: Sequence[str], tell: Callable[[str], None]
) -> Iterator[Bundle]:
    """The bundle MODEL names, or one made for the occasion. Raises _Refused."""
    if (Path(model) / MANIFEST).is_file():
        if shape or loss or train:
            raise InputError("--input, --loss and --train are for a model; a bundle has its own")
        yield read(model)
        return
    if ":" not in model:
        raise InputError(f"{model!r} is no bundle, FILE:OBJECT or zoo:NAME", hint="for example zoo:digits")
    from edgefl_exporter import export
    from edgefl_exporter.models.load_model import load_loss, load_model

    loaded = load_model(model, parse_shape(shape) if shape else None)
    chosen = load_loss(loss or loaded.loss, loaded.labels)
    with tempfile.TemporaryDirectory() as folder:

        def attempt(*programs: str) -> Bundle:
            return export(
                loaded.module,
                loaded.example,
                out=Path(folder) / "model.bundle",
                name=bundle_name(model),
                loss=chosen,
                train=train,
                programs=programs,
                progress=tell,
            )

        def error(program: str) -> EdgeflError | None:
            try:
                attempt(program)
            except (LoweringError, ParityError) as error:
                return error
            return None

        try:
            bundle = attempt(*PROGRAMS)
        except (LoweringError, ParityError):
            raise _Refused(model, {name: error(name) for name in PROGRAMS}) from None
        yield bundle


def _examine(
    bundle: Bundle, device: str | None, examples: int, batch_size: int, tell: Callable[[str], None]
) -> _Result:
    from edgefl.doctor.diagnosis import count, judge
    from edgefl.doctor.speed import measure_speed

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
    return _Result(bundle, costs, here, step_s, batch_size, examples, verdicts)


def _step_seconds(bundle: Bundle, batch_size: int) -> float:
    """The shortest of some training steps, driven as a device drives them, on one core."""
    from edgefl.doctor.shapes import example_inputs
    from edgefl.doctor.speed import best_seconds
    from edgefl_device.engines.runtime import Runtime

    runtime = Runtime(bundle)
    inputs = example_inputs(bundle.manifest.program("train"), batch_size)
    return best_seconds(lambda: runtime.step("train", inputs), tries=TIMED_STEPS)


def _print_refusal(refused: _Refused, form: str) -> None:
    if form == "json":
        programs = {
            name: {"lowers": error is None, "error": error and error.message, "hint": error and error.hint}
            for name, error in refused.programs.items()
        }
        print_json({"model": refused.model, "lowers": False, "programs": programs})
        return
    for name, error in refused.programs.items():
        click.echo(f"{name}: {error.message if error else 'lowers, and is proven'}")
        if error and error.hint:
            click.echo(f"  hint: {error.hint}")


def _operators(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))


def _million(count: int) -> str:
    return f"{count / 1e6:,.3g} M" if count < 1e9 else f"{count / 1e6:,.0f} M"


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
