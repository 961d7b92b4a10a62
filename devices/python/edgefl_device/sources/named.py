"""Data sets that have a name instead of a path."""

from __future__ import annotations

import numpy as np

from edgefl.errors import DataError
from edgefl_device.data.dataset import Dataset, Splits


def digits() -> Splits:
    """scikit-learn's 1,797 images, float32 in 0..1, [1, 8, 8]; every fifth is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the data set 'digits' comes with scikit-learn", hint="pip install 'edgefl[demo]'") from error
    loaded = load_digits()
    images = (loaded.images / 16).astype(np.float32)  # pixels are 0..16
    data = Dataset(images[:, None], loaded.target.astype(np.int64))
    fifth = np.arange(len(data)) % 5 == 0
    return Splits(data.take(np.flatnonzero(~fifth)), data.take(np.flatnonzero(fifth)))
