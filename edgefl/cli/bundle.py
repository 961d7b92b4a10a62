"""Commands on bundles: inspect, verify; and zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from edgefl.bundle import Bundle, read
from edgefl.cli.output import format_option, print_json, print_table
from edgefl.cli.teller import Teller, tells
from edgefl.data_contract import Feature
from edgefl.manifest import Parity, StateTensor
from edgefl.results.rounds import size
from edgefl_exporter.catalogue import catalogue

NAMED = 30  # classes in a line; JSON has them all


@click.command()
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
    labels = f"{contract.labels_dtype} {list(contract.labels)}" if contract.labels else contract.labels_dtype
    classes = f", {contract.classes} classes" if contract.classes else ""
    click.echo(f"data: {', '.join(map(_feature, contract.features))}; labels {labels}{classes}")
    if contract.class_names:
        more = f" ... ({len(contract.class_names)} in all)" if len(contract.class_names) > NAMED else ""
        click.echo(f"classes: {', '.join(contract.class_names[:NAMED])}{more}")
    click.echo(f"identity: {found.sha256}\n")
    print_table(
        "Programs",
        ["program", "size", "inputs", "settings", "worst parity error", "tolerance"],
        [
            [
                name,
                size(program.file.size_bytes),
                ", ".join(i.name for i in program.inputs if i.is_batched),
                ", ".join(f"{k}={v:g}" for k, v in program.settings().items()) or "-",
                _figure(program.parity),
                f"{program.parity.tolerance:.0e}",
            ]
            for name, program in manifest.programs.items()
        ],
    )
    for engine, target in manifest.targets.items():
        click.echo()
        print_table(f"For {engine}", ["file", "size"], [[f.path, size(f.size_bytes)] for f in target.files])
        proofs = [f"{name} {_figure(parity)}" for name, parity in target.parity.items()]
        click.echo(f"worst parity error in {next(iter(target.parity.values())).runtime}: {', '.join(proofs)}")
    click.echo()
    print_table(
        "State",
        ["tensor", "dtype", "shape", "role", "fusion", "size"],
        [
            [t.name, t.dtype, "x".join(map(str, t.shape)) or "scalar", t.role, _fusion(t), size(t.size_bytes)]
            for t in manifest.state
        ],
    )
    click.echo(
        f"\n{about['parameters']:,} parameters; "
        f"a round moves {size(about['bytes_per_round'])} down and as much up per device"
    )


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@format_option
@tells
def verify(bundle: Path, form: str, teller: Teller) -> None:
    """Run the parity proof again, here: golden inputs, this machine's onnxruntime. Exit code 6 when it fails.

    \b
    Example:
      edgefl verify digits.bundle
    """
    from edgefl.replay import replay_all

    found = read(bundle)
    with teller.working(f"proving {bundle}") as tell:
        errors, targets = replay_all(found, progress=tell)
    if form == "json":
        print_json({"bundle": str(bundle), "proven": True, "errors": errors, "targets": targets})
        return
    for name, error in errors.items():
        click.echo(f"{name}: {error:.1e} (tolerance {found.manifest.program(name).parity.tolerance:.0e})")
    for engine, worst in targets.items():
        for name, error in (worst or {}).items():
            tolerance = found.manifest.target(engine).parity[name].tolerance
            click.echo(f"{engine}, {name}: {error:.1e} (tolerance {tolerance:.0e})")
        if worst is None:
            click.echo(f"{engine}: its files are whole; this environment cannot run them")
    left = [engine for engine, worst in targets.items() if worst is None]
    unproven = f"; not run: {', '.join(left)}" if left else ""
    click.echo(f"proven: every program computes here what PyTorch computed{unproven}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("weights", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--out", type=click.Path(path_type=Path), default=Path("model.onnx"), show_default=True)
@format_option
def model(bundle: Path, weights: Path, out: Path, form: str) -> None:
    """Make an ONNX model that predicts, of a bundle and WEIGHTS: what a run has fused, or what a device has trained.

    Tensors that WEIGHTS does not hold are the bundle's.

    \b
    Example:
      edgefl model runs/fedmrl-.../bundles/tiny ~/.edgefl/pi-1/fedmrl-....safetensors -o pi-1.onnx
    """
    from edgefl.results.inference import predictor

    given, left = predictor(read(bundle), weights, out)
    about = {"path": str(out), "size_bytes": out.stat().st_size, "from_weights": given, "from_bundle": left}
    if form == "json":
        print_json(about)
        return
    click.echo(f"wrote {out} ({size(out.stat().st_size)}), {given} tensors of {weights}")
    if left:
        click.echo(f"as the bundle has them: {', '.join(left[:5])}{' ...' if len(left) > 5 else ''}", err=True)


@click.command()
@format_option
def zoo(form: str) -> None:
    """List the models that `edgefl export zoo:NAME` knows.

    \b
    Example:
      edgefl zoo
    """
    rows = catalogue()
    if form == "json":
        print_json(rows)
        return
    columns = ["name", "parameters", "input", "loss", "about", "reference"]
    for row in rows:
        row |= {"parameters": f"{row['parameters']:,}", "input": "x".join(map(str, row["input"]))}
    print_table("Zoo", columns, [[row[column] for column in columns] for row in rows])


def summary(bundle: Bundle) -> dict[str, Any]:
    """A bundle as one JSON object."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "name": manifest.name,
        "method": manifest.method,
        "made_by": manifest.made_by,
        "sha256": bundle.sha256,
        "size_bytes": bundle.size_bytes,
        "parameters": sum(t.size_bytes // 4 for t in manifest.state if t.role == "parameter"),
        "bytes_per_round": sum(t.size_bytes for t in manifest.shared()),
        "data": msgspec.to_builtins(manifest.data),
        "programs": {
            name: {"size_bytes": p.file.size_bytes, "parity": p.parity.worst, "tolerance": p.parity.tolerance}
            for name, p in manifest.programs.items()
        },
        "targets": {
            engine: {
                "size_bytes": sum(f.size_bytes for f in target.files),
                "programs": {name: {"parity": p.worst, "tolerance": p.tolerance} for name, p in target.parity.items()},
            }
            for engine, target in manifest.targets.items()
        },
        "state": [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "role": t.role, "fuse": t.fuse}
            | ({"group": t.public_name} if t.fuse != "local" else {})
            for t in manifest.state
        ],
    }


def _feature(feature: Feature) -> str:
    name = "" if feature.name == "x" else f"{feature.name} "
    within = f" in {feature.range[0]:g}..{feature.range[1]:g}" if feature.range is not None else ""
    mask = f", the mask of {feature.mask_of}" if feature.mask_of else ""
    return f"{name}{feature.dtype} {list(feature.shape)}{within}{mask}"


def _fusion(tensor: StateTensor) -> str:
    return f"{tensor.fuse}, as {tensor.group}" if tensor.group else tensor.fuse


def _figure(parity: Parity) -> str:
    return "-" if parity.worst is None else f"{parity.worst:.1e}"
