"""A data set dealt out to devices, as files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgefl.files import write_atomic
from edgefl.runs.partition import PARTITIONS, alike, has_classes
from edgefl.runs.sections import FleetSection

MOST_CLASSES = 10_000  # that are counted: labels may be any numbers


def deal(fleet: FleetSection, folder: Path, seed: int) -> dict[str, Path]:
    """Device -> the file of its data, dealt out once: a folder that has them all is left as it is."""
    names = names_of(fleet)
    if not (folder / f"{names[-1]}.npz").exists():
        how = (fleet.partition, fleet.alpha, fleet.per_device)
        write_parts(fleet.data, folder, names, *how, seed, fleet.examples, fleet.label)
    return {name: folder / f"{name}.npz" for name in names}


def names_of(fleet: FleetSection) -> list[str]:
    """What emulated devices are called."""
    return [f"device-{i + 1}" for i in range(fleet.devices)]


def write_parts(
    data: str,
    out: Path,
    names: list[str],
    partition: str,
    alpha: float,
    per_device: int,
    seed: int,
    examples: int | None = None,
    label: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, list[int]]:
    """Write OUT/NAME.npz for each name, and OUT/test.npz where there is a test part, of which each device also has its
    share: of the classes that it trains on. `examples`: so many of the training examples; None for all. `label`: the
    name of the label's column, where the data are a table.

    Gives the examples of each class by part, or one number of examples where labels are no class numbers.
    """
    from edgefl_device.data import Dataset, Splits
    from edgefl_device.sources import read_splits

    splits = read_splits(data, label=label)
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
    for number, (name, part) in enumerate(written.items(), 1):
        buffer = io.BytesIO()
        test = {"x_test": tests[name].features, "y_test": tests[name].labels} if name in tests else {}
        np.savez(buffer, allow_pickle=False, x=part.features, y=part.labels, **test)
        write_atomic(out / f"{name}.npz", buffer.getvalue())
        progress(f"{number} of {len(written)} parts written: {name}")
    if not has_classes(splits.train.labels) or (len(splits.train) and splits.train.labels.max() >= MOST_CLASSES):
        return {name: [len(part)] for name, part in written.items()}
    classes = int(splits.train.labels.max()) + 1
    return {
        name: np.bincount(part.labels.astype(np.int64), minlength=classes).tolist() for name, part in written.items()
    }
