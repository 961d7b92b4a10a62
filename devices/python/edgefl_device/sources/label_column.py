"""Which column of a table is the label, and what its values become."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence

import numpy as np

from edgefl.errors import DataError, nearest
from edgefl_device.data.dataset import AnyArray

KNOWN = ("label", "y", "target", "class")  # in small letters; what is called so is the label


def find_label(columns: Sequence[str], wanted: str | None, where: str) -> int:
    """The index of the column called `wanted`; without it, of the one that is called as labels are, or the last.

    Raises DataError, its line beginning with `where`, for a name that no column has, and where several could be it.
    """
    if wanted is not None:
        found = [i for i, name in enumerate(columns) if name == wanted]
        found = found or [i for i, name in enumerate(columns) if name.lower() == wanted.strip().lower()]
        if not found:
            raise DataError(
                f"{where} has no column {wanted!r}; its columns are {', '.join(columns)}",
                hint=nearest(wanted, columns, most=8),
            )
    else:
        found = [i for i, name in enumerate(columns) if name.lower() in KNOWN] or [len(columns) - 1]
    if len(found) > 1:
        raise DataError(
            f"{where}: each of {', '.join(columns[i] for i in found)} could be the label",
            hint="say which it is with --label, and leave the others out",
        )
    return found[0]


class Labels:
    """The labels of a table as they come: all numbers, or all words. A number takes 8 bytes, a word 4."""

    def __init__(self) -> None:
        self._whole = array("q")
        self._numbers: array[float] | None = None  # in place of `_whole` from the first that is not whole
        self._codes = array("i")
        self._words: dict[str, int] = {}  # in the order in which they came

    def add(self, cell: str) -> str | None:
        """Take one. Gives what is wrong with it, or None."""
        if cell in self._words:  # most often, where labels are words
            self._codes.append(self._words[cell])
            return None
        if not cell:
            return "the label is empty"
        number = number_in(cell)
        if number is None:
            if self._whole or self._numbers:
                return f"the label {cell!r} is no number, as those before it are"
            self._codes.append(self._words.setdefault(cell, len(self._words)))
        elif self._words:
            return f"the label {cell!r} is a number, and those before it are words"
        elif self._numbers is not None:
            self._numbers.append(number)
        elif re.fullmatch(r"[+-]?[0-9]{1,18}", cell):
            self._whole.append(int(cell))
        else:
            self._numbers, self._whole = array("d", self._whole), array("q")
            self._numbers.append(number)
        return None

    def done(self) -> tuple[AnyArray, dict[int, str] | None]:
        """Whole numbers as int64, others as float32, words as their places among all words; and names of the last."""
        if self._words:
            names = sorted(self._words)
            places = {word: i for i, word in enumerate(names)}
            of_code = np.array([places[word] for word in self._words], np.int64)
            return of_code[np.frombuffer(self._codes, np.intc)], dict(enumerate(names))
        if self._numbers is None:
            return np.frombuffer(self._whole, np.int64), None
        with np.errstate(over="ignore"):  # infinity is refused with the contract
            return np.array(self._numbers, np.float32), None


def number_in(cell: str) -> float | None:
    """The number that a cell says, if it says one. 1_000, which Python reads, is none: it may be a name."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
