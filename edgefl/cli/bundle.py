"""Commands on bundles: export, inspect, verify, zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgefl.bundle import Bundle, Normalisation, read
from edgefl.cli.output import format_option, print_json, print_table, tell
from edgefl.errors import InputError
from edgefl.report import size


@click.command(short_help="Compile a PyTorch model to a proven bundle.")
@click.argument("model")
@click.option("--method", type=click.Choice(["fedavg"]), default="fedavg", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The bundle to write; default: NAME.bundle.")
@click.option("--input", "shape", help="Shape of one example, e.g. 1x8x8, where MODEL gives only a module.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=0.1,
    show_default=True,
    help="Default; a run can set another.",
)
@click.option("--momentum", type=click.FloatRange(0, 1), default=0.0, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option(
    "--mean", default="0", show_default=True, help="Normalisation, one number or one per channel: 0.5,0.5,0.5"
)
@click.option("--std", default="1", show_default=True, help="Like --mean: x becomes (x - mean) / std.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the initial weights and of the proof's data.",
)
@format_option
def export(
    model: str,
    method: str,
    out: Path | None,
    shape: str | None,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    mean: str,
    std: str,
    seed: int,
    form: str,
) -> None:
    """Compile a PyTorch model to a bundle of training programs, and prove them.

    MODEL is FILE:OBJECT, a function or class giving an nn.Module (then give --input), or a function giving
    (module, example_input); or zoo:NAME.

    \b
    Example:
      edgefl export examples/digits.py:model -o digits.bundle
    """
    from edgefl_exporter import export as export_model
    from edgefl_exporter.load_model import load_model
    from edgefl_exporter.optimizers import SGD

    module, example = load_model(model, parse_shape(shape) if shape else None, seed=seed)
    name = bundle_name(model)
    bundle = export_model(
        module,
        example,
        out=out or Path(f"{name}.bundle"),
        name=name,
        method=method,
        optimizer=SGD(learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay),
        normalisation=Normalisation(_numbers(mean, "--mean"), _numbers(std, "--std")),
        seed=seed,
        progress=tell,
    )
    if form == "json":
        print_json(summary(bundle))
    else:
        click.echo(f"wrote {bundle.path} ({size(_total(bundle))}), proven against PyTorch")


@click.command(short_help="Show what is in a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@format_option
def inspect(bundle: Path, form: str) -> None:
    """Show a bundle: programs, state, sizes, parity, bytes per round.

    \b
    Example:
      edgefl inspect digits.bundle
    """
    found = read(bundle)
    about = summary(found)
    if form == "json":
        print_json(about)
        return
    manifest = found.manifest
    contract = manifest.data
    click.echo(f"{manifest.name}: a bundle for {manifest.method}, made by {manifest.made_by}")
    click.echo(f"data: {contract.dtype} {list(contract.features)}, {contract.classes or 'no'} classes")
    click.echo(f"identity: {found.sha256}\n")
    print_table(
        "Programs",
        ["program", "size", "inputs", "settings", "worst parity error", "tolerance"],
        [
            [
                name,
                size(program.file.size_bytes),
                ", ".join(i.name for i in program.inputs if i.source != "setting"),
                ", ".join(f"{k}={v:g}" for k, v in program.settings().items()) or "-",
                f"{program.parity.worst:.1e}",
                f"{program.parity.tolerance:.0e}",
            ]
            for name, program in manifest.programs.items()
        ],
    )
    click.echo()
    print_table(
        "State",
        ["tensor", "dtype", "shape", "role", "fusion", "size"],
        [
            [t.name, t.dtype, "x".join(map(str, t.shape)) or "scalar", t.role, t.fuse, size(t.size_bytes)]
            for t in manifest.state
        ],
    )
    click.echo(
        f"\n{about['parameters']:,} parameters; "
        f"a round moves {size(about['bytes_per_round'])} down and as much up per device"
    )


@click.command(short_help="Repeat the parity proof on this machine.")
@click.argument("bundle", type=click.Path(path_type=Path))
@format_option
def verify(bundle: Path, form: str) -> None:
    """Run the parity proof again, here: golden inputs, this machine's onnxruntime. Exit code 6 when it fails.

    \b
    Example:
      edgefl verify digits.bundle
    """
    from edgefl.golden import replay

    found = read(bundle)
    errors = replay(found)
    if form == "json":
        print_json({"bundle": str(bundle), "proven": True, "errors": errors})
        return
    for name, error in errors.items():
        click.echo(f"{name}: {error:.1e} (tolerance {found.manifest.program(name).parity.tolerance:.0e})")
    click.echo("proven: every program computes here what PyTorch computed")


@click.command(short_help="List models to start from.")
@format_option
def zoo(form: str) -> None:
    """List the models that `edgefl export zoo:NAME` knows.

    \b
    Example:
      edgefl zoo
    """
    from edgefl_exporter.zoo import ZOO

    rows: list[dict[str, Any]] = []
    for name, make in ZOO.items():
        module, example = make()
        parameters = sum(p.numel() for p in module.parameters())
        about = (make.__doc__ or "").strip().split("\n")[0]
        rows.append({"name": name, "parameters": parameters, "input": list(example.shape[1:]), "about": about})
    if form == "json":
        print_json(rows)
        return
    cells = [[r["name"], f"{r['parameters']:,}", "x".join(map(str, r["input"])), r["about"]] for r in rows]
    print_table("Zoo", ["name", "parameters", "input", "about"], cells)


def summary(bundle: Bundle) -> dict[str, Any]:
    """A bundle as one JSON object."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "name": manifest.name,
        "method": manifest.method,
        "made_by": manifest.made_by,
        "sha256": bundle.sha256,
        "size_bytes": _total(bundle),
        "parameters": sum(t.size_bytes // 4 for t in manifest.state if t.role == "parameter"),
        "bytes_per_round": sum(t.size_bytes for t in manifest.shared()),
        "data": {"features": list(manifest.data.features), "classes": manifest.data.classes},
        "programs": {
            name: {"size_bytes": p.file.size_bytes, "parity": p.parity.worst, "tolerance": p.parity.tolerance}
            for name, p in manifest.programs.items()
        },
        "state": [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "role": t.role, "fuse": t.fuse}
            for t in manifest.state
        ],
    }


def bundle_name(model: str) -> str:
    """What a bundle is called: OBJECT, or the file's name where OBJECT says nothing ("model")."""
    file, _, name = model.rpartition(":")
    return Path(file).stem if name == "model" else name


def parse_shape(text: str) -> tuple[int, ...]:
    """ "1x8x8" -> (1, 8, 8). Raises InputError."""
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(f"--input {text!r} is not a shape", hint="write one example's dimensions: --input 1x8x8")
    return shape


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text!r} is not a number, or numbers with commas") from None


def _total(bundle: Bundle) -> int:
    return len(bundle.manifest_bytes) + sum(f.size_bytes for f in bundle.manifest.files())
