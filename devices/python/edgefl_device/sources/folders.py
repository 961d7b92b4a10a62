"""A folder per class: each holds that class's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import Dataset, Splits
from edgefl_device.sources.images import decode
from edgefl_device.sources.known import FORMATS

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".webp")


def read_folders(path: Path) -> Splits:
    """Folders of classes, perhaps inside train/ and test/; classes are numbered in the order of their names."""
    if not (path / "train").is_dir():
        return Splits(_images(path, _class_folders(path)))
    classes = _class_folders(path / "train")
    test = path / "test"
    return Splits(_images(path / "train", classes), _images(test, classes) if test.is_dir() else None)


def _class_folders(path: Path) -> list[str]:
    classes = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    # Folders called 0, 1, ... 10 are class numbers: as text, 10 would come before 2.
    if all(name.isdecimal() for name in classes):
        classes.sort(key=int)
    if not classes:
        raise DataError(f"{path} holds no data that is known", hint=f"give {FORMATS}")
    return classes


def _images(path: Path, classes: list[str]) -> Dataset:
    if unknown := sorted(set(_class_folders(path)) - set(classes)):
        raise DataError(f"{path} has a class {unknown[0]!r} that the training images lack")
    found = [
        (file, number)
        for number, name in enumerate(classes)
        for file in sorted((path / name).glob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise DataError(f"{path}: no images in its {len(classes)} folders", hint=f"known: {', '.join(SUFFIXES)}")
    features = decode([(str(file), file) for file, _ in found])
    return Dataset(features, np.array([number for _, number in found], np.int64))
