"""A data set dealt out to devices, as files."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgefl.data_contract import check_class_names, class_name
from edgefl.errors import DataError
from edgefl.files import write_atomic
from edgefl.runs.partition import PARTITIONS, alike, has_classes
from edgefl.runs.sections import FleetSection

if TYPE_CHECKING:
    from edgefl_device.data import Dataset, Splits

CLASSES = "classes.txt"
MOST_CLASSES = 10_000  # that are counted: labels may be any numbers


@dataclass(frozen=True)
class Dealt:
    """What was written: part -> its examples of each class, and the classes' names. Where labels are no class numbers,
    one number of examples, and no names. `notes`: what the reader of the data set passed over or changed."""

    counts: dict[str, list[int]]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
) -> Dealt:
    """Write OUT/NAME.npz for each name, and OUT/test.npz where there is a test part, of which each device also has its
    share: of the classes that it trains on. `examples`: so many of the training examples; None for all. `label`: the
    name of the label's column, where the data are a table.

    Where labels are classes, OUT/classes.txt names them in their order, as `edgefl export --classes` reads it; and each
    part has the names that the data set gives them, so that a device knows its classes in any bundle.
    """
    from edgefl_device.sources import read_splits

    splits, classes = _numbered(read_splits(data, label=label))
    rng = np.random.default_rng(seed)
    if examples is not None:
        splits = replace(splits, train=splits.train.take(np.sort(rng.permutation(len(splits.train))[:examples])))
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
        more = _arrays(tests[name], "_test") if name in tests else {}
        if classes and classes != _numbers(len(classes)):
            more["classes"] = np.array(classes)
        np.savez(buffer, allow_pickle=False, **_arrays(part), **more)
        write_atomic(out / f"{name}.npz", buffer.getvalue())
        progress(f"{number} of {len(written)} parts written: {name}")
    if not has_classes(splits.train.labels) or (len(splits.train) and splits.train.labels.max() >= MOST_CLASSES):
        return Dealt({name: [len(part)] for name, part in written.items()}, (), splits.notes)
    classes = classes or _numbers(int(splits.train.labels.max()) + 1)
    write_atomic(out / CLASSES, "".join(f"{name}\n" for name in classes).encode())
    counts = {
        name: np.bincount(part.labels.astype(np.int64), minlength=len(classes)).tolist()
        for name, part in written.items()
    }
    return Dealt(counts, classes, splits.notes)


def _numbered(splits: Splits) -> tuple[Splits, tuple[str, ...]]:
    """A data set with its classes numbered from 0, and what it calls them; nothing where it only has numbers.

    Raises DataError for a name that no bundle can have.
    """
    from edgefl_device.data import Splits

    names = splits.train.names
    if names is None:
        return splits, ()
    labels = sorted(names)
    classes = tuple(class_name(names[label]) for label in labels)
    try:
        check_class_names(classes, len(classes))
    except ValueError as error:
        raise DataError(f"the data set cannot be dealt out: {error}", hint="call its classes otherwise") from error

    def numbered(part: Dataset) -> Dataset:
        return replace(part, labels=np.searchsorted(labels, part.labels).astype(np.int64), names=None)

    test = None if splits.test is None else numbered(splits.test)
    return Splits(numbered(splits.train), test, splits.notes), classes


def _arrays(part: Dataset, suffix: str = "") -> dict[str, np.ndarray]:
    """A part as arrays of an .npz, as a device reads it."""
    arrays = {**part.others, "x": part.features, "y": part.labels}
    if part.lengths is not None:
        arrays["lengths"] = part.lengths
    return {name + suffix: array for name, array in arrays.items()}


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
