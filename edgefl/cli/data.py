"""Commands on data: split."""

from __future__ import annotations

import re
from pathlib import Path

import click

from edgefl.cli.output import format_option, print_json, print_table
from edgefl.cli.teller import Teller, tells
from edgefl.errors import ConfigError
from edgefl.protocol import NAME


@click.command()
@click.argument("data")
@click.option("--devices", type=click.IntRange(1), required=True, help="How many parts.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write.")
@click.option(
    "--partition", type=click.Choice(["iid", "dirichlet", "shards", "classes"]), default="dirichlet", show_default=True
)
@click.option("--alpha", type=float, default=0.5, show_default=True, help="Of dirichlet: small is uneven.")
@click.option("--per-device", type=int, default=2, show_default=True, help="Of shards and classes.")
@click.option("--examples", type=click.IntRange(1), help="Use so many of the training examples, drawn by the seed.")
@click.option("--label", metavar="NAME", help="Name of the label's column, where DATA is a table.")
@click.option("--prefix", default="pi", show_default=True, help="Parts are called PREFIX-1, PREFIX-2 ...")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@format_option
@tells
def split(
    data: str,
    devices: int,
    out: Path,
    partition: str,
    alpha: float,
    per_device: int,
    examples: int | None,
    label: str | None,
    prefix: str,
    seed: int,
    form: str,
    teller: Teller,
) -> None:
    """Cut a data set into one part per device, and its test part; a device's part has its share of the test part, too.

    DATA is a folder of IDX files (MNIST), an .npz, .csv or .parquet file, a folder of images per class, or
    `digits`; docs/data.md has them all.

    \b
    Example:
      edgefl split digits --devices 8 -o parts      # parts/pi-1.npz ... parts/test.npz, parts/classes.txt
    """
    from edgefl.runs.parts import write_parts

    names = [f"{prefix}-{i + 1}" for i in range(devices)]
    if not re.fullmatch(NAME, names[-1]):
        raise ConfigError(f"--prefix {prefix!r} makes no device names", hint="a-z, 0-9, _ and -, short")
    with teller.working(f"cutting {data}"):
        how = (partition, alpha, per_device, seed, examples, label)
        dealt = write_parts(data, out, names, *how, progress=teller.detail)
    for note in dealt.notes:
        teller.tell(f"{data}: {note}")
    if form == "json":
        parts = {name: sum(counts) for name, counts in dealt.counts.items()}
        print_json({"out": str(out), "parts": parts, "classes": dealt.classes})
        return
    if not dealt.classes:
        print_table(f"{out}: examples", ["part", "all"], [[name, str(sum(c))] for name, c in dealt.counts.items()])
        return
    print_table(
        f"{out}: examples of each class",
        ["part", *dealt.classes, "all"],
        [[name, *(str(n) for n in c), str(sum(c))] for name, c in dealt.counts.items()],
    )
