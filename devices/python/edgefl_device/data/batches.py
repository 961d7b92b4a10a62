"""Examples as a program takes them, a batch at a time, without further checks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgefl.data_contract import DataContract, Feature
from edgefl.tensors import Array
from edgefl_device.data.dataset import AnyArray, Dataset


def batches(
    dataset: Dataset, contract: DataContract, order: AnyArray, batch_size: int
) -> Iterator[tuple[dict[str, Array], Array]]:
    """Contiguous features by name, and labels, of the contract's dtypes: the examples at the indices `order`.

    `batch_size` at a time, 0 is all of them at once; the last batch may be short. Pixels (uint8) become values of the
    feature's range; then x = (x - mean) / std as its normalisation says. `dataset` comes from `fit_to_contract`.
    """
    size = batch_size or len(order)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        labels = dataset.labels[chosen].astype(contract.labels_dtype, copy=False)
        first, *others = contract.features
        features = {first.name: _normalised(dataset.features[chosen], first)}
        features |= {one.name: _normalised(dataset.others[one.name][chosen], one) for one in others}
        yield features, np.ascontiguousarray(labels).reshape(labels.shape)


def _normalised(values: AnyArray, feature: Feature) -> Array:
    """`values` [n, ...] is a copy that may be changed in place."""
    x = np.ascontiguousarray(values, dtype=feature.dtype)
    if not feature.is_float:
        return x
    if values.dtype == np.uint8 and feature.pixels is not None:
        low, high = feature.pixels
        x /= x.dtype.type(255 / (high - low))
        if low:
            x += x.dtype.type(low)
    mean, std = feature.normalisation.mean, feature.normalisation.std
    if any(mean):
        x -= _per_channel(mean, x)
    if any(value != 1 for value in std):
        x /= _per_channel(std, x)
    return x


def _per_channel(values: tuple[float, ...], x: AnyArray) -> AnyArray:
    """`values` in a shape that meets the channels of `x` [n, channels, ...]."""
    if len(values) == 1:
        return np.asarray(values[0], x.dtype)
    return np.asarray(values, x.dtype).reshape(-1, *[1] * (x.ndim - 2))
