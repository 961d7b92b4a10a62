"""A device's own data in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

AnyArray = npt.NDArray[Any]  # files hold dtypes that programs do not


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples and their labels: `features` [n, ...], `labels` [n, ...]. Images are [n, channels, height, width]."""

    features: AnyArray
    labels: AnyArray

    def __len__(self) -> int:
        return len(self.features)

    def take(self, indices: AnyArray) -> Dataset:
        """The examples at `indices`, in that order."""
        return Dataset(self.features[indices], self.labels[indices])


@dataclass(frozen=True)
class Splits:
    """What a source holds: training examples, and test examples where it has them."""

    train: Dataset
    test: Dataset | None = None
