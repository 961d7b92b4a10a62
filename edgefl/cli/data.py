"""Commands on data: split."""

from __future__ import annotations

import io
import re
from pathlib import Path

import click
import numpy as np

from edgefl.cli.output import format_option, print_json, print_table
from edgefl.errors import ConfigError
from edgefl.files import write_atomic
from edgefl.protocol import NAME

MOST_CLASSES = 10_000  # that are counted: labels may be any numbers


@click.command(short_help="Cut a data set into one part per device.")
@click.argument("data")
@click.option("--devices", type=click.IntRange(1), required=True, help="How many parts.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write.")
@click.option(
    "--partition", type=click.Choice(["iid", "dirichlet", "shards", "classes"]), default="dirichlet", show_default=True
)
@click.option("--alpha", type=float, default=0.5, show_default=True, help="Of dirichlet: small is uneven.")
@click.option("--per-device", type=int, default=2, show_default=True, help="Of shards and classes.")
@click.option("--examples", type=click.IntRange(1), help="Use so many of the training examples, drawn by the seed.")
@click.option("--prefix", default="pi", show_default=True, help="Parts are called PREFIX-1, PREFIX-2 ...")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@format_option
def split(
    data: str,
    devices: int,
    out: Path,
    partition: str,
    alpha: float,
    per_device: int,
    examples: int | None,
    prefix: str,
    seed: int,
    form: str,
) -> None:
    """Cut a data set into one part per device, and its test part; a device's part has its share of the test part, too.

    DATA is a folder of IDX files (MNIST), an .npz or .csv file, a folder of images per class, or `digits`.

    \b
    Example:
      edgefl split digits --devices 8 -o parts      # parts/pi-1.npz ... parts/test.npz
    """
    names = [f"{prefix}-{i + 1}" for i in range(devices)]
    if not re.fullmatch(NAME, names[-1]):
        raise ConfigError(f"--prefix {prefix!r} makes no device names", hint="a-z, 0-9, _ and -, short")
    counts = write_parts(data, out, names, partition, alpha, per_device, seed, examples)
    if form == "json":
        print_json({"out": str(out), "parts": {name: sum(classes) for name, classes in counts.items()}})
        return
    classes = max(len(c) for c in counts.values())
    if classes == 1:
        print_table(f"{out}: examples", ["part", "all"], [[name, str(sum(c))] for name, c in counts.items()])
        return
    print_table(
        f"{out}: examples of each class",
        ["part", *(str(c) for c in range(classes)), "all"],
        [[name, *(str(n) for n in c), str(sum(c))] for name, c in counts.items()],
    )


def write_parts(
    data: str,
    out: Path,
    names: list[str],
    partition: str,
    alpha: float,
    per_device: int,
    seed: int,
    examples: int | None = None,
) -> dict[str, list[int]]:
    """Write OUT/NAME.npz for each name, and OUT/test.npz where there is a test part, of which each device also has its
    share: of the classes that it trains on. `examples`: so many of the training examples; None for all.

    Gives the examples of each class by part, or one number of examples where labels are no class numbers.
    """
    from edgefl.runs.partition import PARTITIONS, alike, has_classes
    from edgefl_device.data import Dataset, Splits, read_splits

    splits = read_splits(data)
    rng = np.random.default_rng(seed)
    if examples is not None:
        splits = Splits(splits.train.take(np.sort(rng.permutation(len(splits.train))[:examples])), splits.test)
    extra = {"dirichlet": (alpha,), "shards": (per_device,), "classes": (per_device,)}.get(partition, ())
    parts = PARTITIONS[partition](splits.train.labels, len(names), *extra, rng)
    written: dict[str, Dataset] = {name: splits.train.take(part) for name, part in zip(names, parts, strict=True)}
    tests: dict[str, Dataset] = {}
    if splits.test is not None:
        written["test"] = splits.test
        labels = splits.test.labels
        if has_classes(labels):
            dealt = alike(splits.train.labels, parts, labels, rng)
        else:
            dealt = np.array_split(rng.permutation(len(labels)), len(names))
        tests = {name: splits.test.take(own) for name, own in zip(names, dealt, strict=True) if len(own)}
    for name, part in written.items():
        buffer = io.BytesIO()
        test = {"x_test": tests[name].features, "y_test": tests[name].labels} if name in tests else {}
        np.savez(buffer, allow_pickle=False, x=part.features, y=part.labels, **test)
        write_atomic(out / f"{name}.npz", buffer.getvalue())
    if not has_classes(splits.train.labels) or (len(splits.train) and splits.train.labels.max() >= MOST_CLASSES):
        return {name: [len(part)] for name, part in written.items()}
    classes = int(splits.train.labels.max()) + 1
    return {
        name: np.bincount(part.labels.astype(np.int64), minlength=classes).tolist() for name, part in written.items()
    }
