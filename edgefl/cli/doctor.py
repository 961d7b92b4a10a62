"""The command that says what a model asks of a device."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgefl.cli.output import format_option, print_json, print_table
from edgefl.cli.teller import Teller, tells
from edgefl.doctor.devices import DEVICES
from edgefl.results.rounds import size

if TYPE_CHECKING:
    from edgefl.doctor.examine import Examined, Refused


@click.command()
@click.argument("model")
@click.option("--device", type=click.Choice(list(DEVICES)), help="Default: all.")
@click.option("--examples", type=click.IntRange(1), default=1000, show_default=True, help="In a device's data set.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--input", "shape", help="Shape of one example, e.g. 1x8x8, where MODEL gives only a module.")
@click.option("--loss", help="As of `edgefl export`; a bundle has its own.")
@click.option("--train", help="As of `edgefl export`, e.g. 'head.*'; a bundle has its own.")
@click.option("--memory-curve", is_flag=True, help="Time against memory, as `edgefl export --memory` trades them.")
@format_option
@tells
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
    memory_curve: bool,
    form: str,
    teller: Teller,
) -> None:
    """Say what a model asks of a device: does it lower, work, memory, bytes to send, time for an epoch.

    MODEL is FILE:OBJECT, zoo:NAME or a bundle. Times on devices are estimates. Exit code: 0 it fits the device (without
    --device: one of them), 1 it does not, 3 it cannot be lowered, 6 the proof failed.

    \b
    Example:
      edgefl doctor zoo:resnet20 --device pi-4
    """
    from edgefl.doctor.examine import Refused, examine

    with teller.working(f"examining {model}") as tell:
        try:
            result = examine(
                model,
                device=device,
                examples=examples,
                batch_size=batch_size,
                shape=shape,
                loss=loss,
                train=train,
                memory_curve=memory_curve,
                progress=tell,
            )
        except Refused as refused:
            _print_refusal(refused, form)
            context.exit(refused.exit_code)
    if form == "json":
        print_json(_as_json(result, model))
    else:
        _print(result)
    context.exit(0 if any(verdict.fits for verdict in result.verdicts) else 1)


def _as_json(result: Examined, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "lowers": True,
        **asdict(result.costs),
        "here": {**asdict(result.here), "step_s": result.step_s, "threads": 1},
        "batch_size": result.batch_size,
        "examples": result.examples,
        "devices": [asdict(verdict) for verdict in result.verdicts],
        "memory_curve": [asdict(spent) for spent in result.memory_curve],
    }


def _print(result: Examined) -> None:
    costs, manifest = result.costs, result.bundle.manifest
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
    click.echo(f"(whole process: `edgefl device` with {result.examples:,} examples in memory)")
    if result.memory_curve:
        plain = result.memory_curve[0]
        click.echo()
        print_table(
            f"Time against memory, batches of {result.batch_size}",
            ["made again", "tensors alive", "a process grows by", "of the first", "a step takes"],
            [
                [
                    str(spent.again),
                    size(spent.counted_bytes),
                    size(spent.grown_bytes),
                    f"{spent.grown_bytes / max(plain.grown_bytes, 1):.0%}",
                    f"{spent.step_s * 1e3:.3g} ms",
                ]
                for spent in result.memory_curve
            ],
        )
        click.echo("(`edgefl export --memory SIZE` gives the fastest that fits)")
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
            for v in result.verdicts
        ],
    )
    click.echo(
        f"(an epoch: {result.examples:,} examples in batches of {result.batch_size}, on one core; here a step takes "
        f"{result.step_s * 1e3:.3g} ms on a core of {result.here.gflops:.0f} GFLOP/s that copies "
        f"{result.here.copy_gb_s:.1f} GB/s)"
    )
    for verdict in result.verdicts:
        for line in verdict.advice:
            click.echo(f"{verdict.device}: {line}")


def _print_refusal(refused: Refused, form: str) -> None:
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
