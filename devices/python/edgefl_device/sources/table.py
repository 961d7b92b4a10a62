"""CSV: one example per row."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, Dataset

LABEL_COLUMNS = ("label", "y", "target", "class")


def read_csv(path: Path) -> Dataset:
    """The rows of a CSV file; a first row that is not all numbers names the columns."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [(reader.line_num, row) for reader in [csv.reader(file)] for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file: {error}") from error
    header: list[str] = []
    # Labels may be words, so only the other columns tell a header from an example.
    if rows and any(not _is_number(cell) for cell in rows[0][1][:-1]):
        header = [cell.strip().lower() for cell in rows.pop(0)[1]]
    if not rows:
        raise DataError(f"{path}: no examples")
    width = len(header) or len(rows[0][1])
    if width < 2:
        raise DataError(f"{path}: one column; expected features and a label, separated by commas")
    label = next((header.index(name) for name in LABEL_COLUMNS if name in header), width - 1)
    features = np.empty((len(rows), width - 1), np.float32)
    words: list[str] = []
    for i, (line, row) in enumerate(rows):
        if len(row) != width:
            raise DataError(f"{path}, line {line}: {len(row)} columns; expected {width}")
        words.append(row.pop(label).strip())
        try:
            with np.errstate(over="ignore"):  # infinity is refused with the contract
                features[i] = [float(cell) for cell in row]
        except ValueError:
            wrong = next(cell for cell in row if not _is_number(cell))
            raise DataError(
                f"{path}, line {line}: {wrong!r} is not a number", hint="features must be numbers"
            ) from None
    return Dataset(features, _labels(words))


def _labels(words: list[str]) -> AnyArray:
    """Whole numbers as int64, other numbers as float32, words as class numbers in the order of their names."""
    if all(re.fullmatch(r"[+-]?\d{1,18}", word) for word in words):
        return np.array([int(word) for word in words], np.int64)
    if all(_is_number(word) for word in words):
        with np.errstate(over="ignore"):
            return np.array([float(word) for word in words], np.float32)
    number = {word: i for i, word in enumerate(sorted(set(words)))}  # an array of texts is as wide as the longest
    return np.array([number[word] for word in words], np.int64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
