"""A device's own data in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from edgefl.errors import DataError

AnyArray = npt.NDArray[Any]  # files hold dtypes that programs do not

MOST_MB = 4096  # of one array that is packed in a file: zip, gzip and PNG make a thousand bytes of one
MOST_MB_VARIABLE = "EDGEFL_MAX_ARRAY_MB"


def check_size(size_bytes: int, where: str, *, file_bytes: int = 0) -> None:
    """Raise DataError, its line beginning with `where`, for an array that is too large to be unpacked: before it is.

    `file_bytes`: how large the file is. What is no larger in memory is there, and no bomb.
    """
    given = os.environ.get(MOST_MB_VARIABLE, str(MOST_MB))
    if not re.fullmatch("[0-9]{1,9}", given):
        raise DataError(f"{MOST_MB_VARIABLE} is {given!r}; expected a whole number of MB")
    if size_bytes > max(file_bytes, int(given) * 10**6):
        raise DataError(
            f"{where} would be {-(-size_bytes // 10**6)} MB in memory; at most {given} are unpacked",
            hint=f"is the file damaged, or made to do harm? If it is right, set {MOST_MB_VARIABLE}",
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples and their labels: `features` [n, ...], `labels` [n, ...]. Images are [n, channels, height, width].

    names     label -> what the source calls it: a folder's name, a word in a CSV. None where labels are numbers in a
              file. Words are labelled 0, 1, ... in sorted order; folders that are all called by numbers, by these.
    others    features by name, for a bundle that takes several; its first is `features` where none here has that name
    lengths   [n]: so much of each example, along its first dimension, is there, the rest fills it up. None: all of it
    """

    features: AnyArray
    labels: AnyArray
    names: Mapping[int, str] | None = None
    others: Mapping[str, AnyArray] = field(default_factory=dict)
    lengths: AnyArray | None = None

    def __len__(self) -> int:
        return len(self.features)

    def take(self, indices: AnyArray) -> Dataset:
        """The examples at `indices`, in that order; labels keep their names."""
        return replace(
            self,
            features=self.features[indices],
            labels=self.labels[indices],
            others={name: array[indices] for name, array in self.others.items()},
            lengths=None if self.lengths is None else self.lengths[indices],
        )


@dataclass(frozen=True)
class Splits:
    """What a source holds: training examples, and test examples where it has them.

    notes   lines about what its reader passed over or changed, for whoever looks
    """

    train: Dataset
    test: Dataset | None = None
    notes: tuple[str, ...] = ()
