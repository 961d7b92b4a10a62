"""A folder per class, each with that class's images or sounds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import Dataset, Splits
from edgefl_device.sources import images, sounds
from edgefl_device.sources.known import FORMATS, TEST_PARTS

KINDS = {"image": images, "sound": sounds}
JUNK = ("Thumbs.db", "desktop.ini", "lost+found", "System Volume Information")


@dataclass(frozen=True)
class _Part:
    """One folder of classes: what its files are, class -> these, and the others that lie there."""

    path: Path
    kinds: set[str]
    files: dict[str, list[Path]]
    passed_over: list[Path]

    def labelled(self, numbers: Mapping[str, int]) -> list[tuple[Path, int]]:
        """Each file and its label, in the order of labels."""
        found = [(file, numbers[name]) for name, files in self.files.items() for file in files]
        return sorted(found, key=lambda one: one[1])


def read_folders(path: Path) -> Splits:
    """Folders of classes, perhaps inside train/ and test/.

    A folder without images or sounds is no class; what systems leave (.git, __MACOSX, @eaDir, Thumbs.db) is not seen.
    Folders that are called by whole numbers have those as labels; others are numbered in the order of their names, of
    all parts together. Other files are passed over and counted in the notes; folders in a class's folder are refused.
    """
    parts = [_look(part) for part in _parts_of(path)]
    numbers = number_classes({name for part in parts for name in part.files}, str(path))
    for part in parts:
        if not part.files:
            known = ", ".join(suffix for kind in KINDS.values() for suffix in kind.SUFFIXES)
            raise DataError(
                f"{part.path}: no images or sounds in its {len(_folders(part.path))} folders", hint=f"known: {known}"
            )
    kinds = sorted(set().union(*(part.kinds for part in parts)))
    if len(kinds) > 1:
        raise DataError(f"{path} holds images and sounds", hint="give one kind: a bundle takes features of one shape")
    files = [part.labelled(numbers) for part in parts]
    read, notes = KINDS[kinds[0]].read([[(str(file), file) for file, _ in found] for found in files])
    names = {number: name for name, number in numbers.items()}
    train, *test = (
        Dataset(features, np.array([label for _, label in found], np.int64), names, lengths=lengths)
        for (features, lengths), found in zip(read, files, strict=True)
    )
    return Splits(train, test[0] if test else None, notes + _passed_over(parts, kinds[0]))


def number_classes(names: Iterable[str], where: str) -> dict[str, int]:
    """Name -> label: its number where all are whole numbers, else its place among them.

    Raises DataError for two names of one number.
    """
    names = sorted(names)
    if not all(re.fullmatch("[0-9]{1,9}", name) for name in names):
        return {name: i for i, name in enumerate(names)}
    if len(set(map(int, names))) < len(names):
        raise DataError(f"{where}: two folders are the same number: {', '.join(names)}")
    return {name: int(name) for name in names}


def _parts_of(path: Path) -> list[Path]:
    """The folders of training and test examples; a folder called train without folders in it is a class."""
    train = path / "train"
    if not train.is_dir() or not _folders(train):
        return [path]
    test = next((path / name for name in TEST_PARTS if (path / name).is_dir()), None)
    return [train] if test is None else [train, test]


def _look(path: Path) -> _Part:
    folders = _folders(path)
    if not folders:
        raise DataError(f"{path} holds no data that is known", hint=f"give {FORMATS}")
    files: dict[str, list[Path]] = {}
    passed_over = [entry for entry in _entries(path) if not entry.is_dir()]
    kinds = set()
    for folder in folders:
        for entry in _entries(folder):
            suffix = entry.suffix.lower()
            kind = next((name for name, kind in KINDS.items() if suffix in kind.SUFFIXES + kind.UNREAD), None)
            if kind and suffix in KINDS[kind].UNREAD:
                raise DataError(
                    f"{entry} is of a kind of {kind} that is not read",
                    hint=f"convert it to {'PNG' if kind == 'image' else 'WAV'}",
                )
            if kind:
                kinds.add(kind)
                files.setdefault(folder.name, []).append(entry)
            elif entry.is_dir():
                raise DataError(
                    f"{folder} is a folder of folders; expected one of images or sounds",
                    hint="give one folder for each class",
                )
            else:
                passed_over.append(entry)
    return _Part(path, kinds, files, passed_over)


def _passed_over(parts: list[_Part], kind: str) -> tuple[str, ...]:
    files = [file for part in parts for file in part.passed_over]
    return (f"passed over {len(files)} files that are no {kind}s of a class, such as {files[0]}",) if files else ()


def _folders(path: Path) -> list[Path]:
    return [entry for entry in _entries(path) if entry.is_dir()]


def _entries(path: Path) -> list[Path]:
    """In order, without what systems leave in every folder."""
    return sorted(e for e in path.iterdir() if not e.name.startswith((".", "__", "@", "$")) and e.name not in JUNK)
