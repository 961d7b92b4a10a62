"""CSV: one example per row, read as it comes, in little more memory than the array that it becomes."""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import Dataset
from edgefl_device.sources.label_column import KNOWN, Labels, find_label, number_in

SUFFIXES = (".csv", ".tsv")
SEPARATORS = (";", "\t", ",")

_Rows = Iterator[tuple[int, list[str]]]  # line, cells


def read_table(path: Path, label: str | None = None) -> tuple[Dataset, tuple[str, ...]]:
    """The rows of a CSV file as float32 [n, columns], and notes. `label`: the name of the label's column.

    Values are separated by commas, semicolons or tabs. A first row names the columns if none of its cells is a number,
    or one of them is a label's name.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            separator = _separator(next((line for line in file if line.strip()), ""))
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True)
            return _read(((reader.line_num, row) for row in reader if _is_there(row)), path, label)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file: {error}", hint="save it as CSV in UTF-8") from error


def _read(rows: _Rows, path: Path, wanted: str | None) -> tuple[Dataset, tuple[str, ...]]:
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: no examples")
    width = len(first[1])
    if width < 2:
        raise DataError(f"{path}: one column; expected features and a label, separated by commas")
    header = _header(first[1], wanted)
    notes: tuple[str, ...] = ()
    at = width - 1
    if header:
        if "" in header:
            raise DataError(
                f"{path}: column {header.index('') + 1} has no name",
                hint="row numbers? pandas leaves them out with to_csv(index=False)",
            )
        at = find_label(header, wanted, str(path))
        if wanted is None and header[at].lower() not in KNOWN:
            notes = (f"the label is the last column, {header[at]!r}",)
    elif wanted is not None:
        raise DataError(f"{path} has no column {wanted!r}: its first row does not name the columns")
    features, labels = array("f"), Labels()  # these grow in place; lists of numbers would take nine times as much
    for line, row in rows if header else chain([first], rows):
        if len(row) != width:
            raise DataError(f"{path}, line {line}: {len(row)} columns; expected {width}")
        if wrong := labels.add(row.pop(at).strip()):
            raise DataError(f"{path}, line {line}: {wrong}")
        try:
            if "_" in "".join(row):
                raise ValueError
            features.extend(map(float, row))
        except ValueError:
            raise _no_number(row, f"{path}, line {line}") from None
    if not features:
        raise DataError(f"{path}: no examples")
    values, names = labels.done()
    return Dataset(np.frombuffer(features, np.float32).reshape(-1, width - 1), values, names), notes


def _separator(line: str) -> str:
    """What cuts a first line into most cells; a comma only if nothing else does as well: it may be in numbers."""
    return max(SEPARATORS, key=lambda separator: len(next(csv.reader([line], delimiter=separator), [])))


def _is_there(row: Sequence[str]) -> bool:
    return len(row) > 1 or any(cell.strip() for cell in row)


def _header(first: Sequence[str], wanted: str | None) -> list[str]:
    """The names in a first row; nothing where it is an example."""
    names = [cell.strip() for cell in first]
    known = {*KNOWN, wanted.strip().lower()} if wanted else {*KNOWN}
    is_header = all(number_in(cell) is None for cell in names) or any(name.lower() in known for name in names)
    return names if is_header else []


def _no_number(row: Sequence[str], where: str) -> DataError:
    wrong = next(cell for cell in row if number_in(cell) is None)
    hint = "features must be numbers; a label that is not the last column is called so in the first row, or by --label"
    if re.fullmatch(r"\s*[+-]?[0-9.]+,[0-9]+\s*", wrong):
        hint = "write decimals with a point"
    elif not wrong.strip():
        hint = "remove the example or fill in its missing values"
    return DataError(f"{where}: {wrong!r} is not a number", hint=hint)
