"""Sources that are tables, one of whose columns is the label: which files, and which of them are for testing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import Dataset, Splits
from edgefl_device.sources import arrow, table
from edgefl_device.sources.known import TEST_PARTS

_Read = tuple[Dataset, tuple[str, ...]]  # and notes


def read_tables(path: Path, label: str | None) -> Splits | None:
    """A file, a folder with files called train and test, or a folder that `datasets` saved. None: it is no table."""
    if path.is_file():
        if path.suffix in table.SUFFIXES:
            return _together([table.read_table(path, label)])
        return _together([arrow.read_parquet([path], label)]) if path.suffix == arrow.SUFFIX else None
    if not path.is_dir():
        return None
    if saved := arrow.saved_parts(path):
        if "train" not in saved:
            raise DataError(f"{path} has no part 'train'; its parts are {', '.join(saved)}", hint="give one of them")
        return _together([arrow.read_saved(saved[part], label) for part in _chosen(saved)])
    for folder in (path, path / "data"):  # as data sets lie on Hugging Face's hub
        shards = _found(folder, "[.-]*parquet")
        if "train" in shards:
            return _together([arrow.read_parquet(shards[part], label) for part in _chosen(shards)])
    files = _found(path, ".csv")
    if "train" in files:
        return _together([table.read_table(files[part][0], label) for part in _chosen(files)])
    return None


def _found(folder: Path, ending: str) -> Mapping[str, list[Path]]:
    found = {part: sorted(folder.glob(part + ending)) for part in ("train", *TEST_PARTS)}
    return {part: files for part, files in found.items() if files}


def _chosen(parts: Collection[str]) -> list[str]:
    return ["train", *[part for part in TEST_PARTS if part in parts][:1]]


def _together(read: list[_Read]) -> Splits:
    """Parts whose words are numbered together."""
    parts = [part for part, _ in read]
    if any(part.names != parts[0].names for part in parts):
        words = sorted({word for part in parts for word in (part.names or {}).values()})
        parts = [_renumbered(part, words) for part in parts]
    notes = dict.fromkeys(note for _, notes in read for note in notes)
    return Splits(parts[0], parts[1] if len(parts) > 1 else None, tuple(notes))


def _renumbered(part: Dataset, words: list[str]) -> Dataset:
    if part.names is None:
        return part  # numbers where the other part has words: for the contract to refuse
    numbers = np.array([words.index(part.names[label]) for label in range(len(part.names))], np.int64)
    return Dataset(part.features, numbers[part.labels], dict(enumerate(words)))
