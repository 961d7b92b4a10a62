"""Data at the door: checked against the bundle's data contract once, then cut into batches without further checks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgefl.errors import DataError
from edgefl.manifest import DataContract
from edgefl.tensors import Array
from edgefl_device.data.dataset import AnyArray, Dataset

CHUNK = 4096  # examples; checks look at this many at once, to need little memory beside the data


def fit_to_contract(dataset: Dataset, contract: DataContract, where: str) -> Dataset:
    """The same examples in the contract's shape and dtype. Raises DataError, its line beginning with `where`.

    Shapes: a channel dimension is added ([H, W] to [1, H, W]) and features are flattened ([1, 28, 28] to [784]);
    any other difference is refused. Features stay uint8 where the contract wants floats, a quarter of the memory:
    `batches` converts them.
    """
    features, labels = np.asarray(dataset.features), np.asarray(dataset.labels)
    if features.ndim == 0 or labels.ndim == 0:
        raise DataError(f"{where}: features and labels must be arrays with one entry per example")
    if len(features) != len(labels):
        raise DataError(
            f"{where}: {len(features)} examples but {len(labels)} labels", hint="every example needs exactly one label"
        )
    if len(features) == 0:
        raise DataError(f"{where}: no examples", hint="a device without data cannot train; give it another source")
    return Dataset(_fit_features(features, contract, where), _fit_labels(labels, contract, where))


def batches(
    dataset: Dataset, contract: DataContract, order: AnyArray, batch_size: int
) -> Iterator[tuple[Array, Array]]:
    """Contiguous (x, y) of the contract's dtypes: the examples at the indices `order`, `batch_size` at a time.

    0 is all of them at once; the last batch may be short. uint8 features become x / 255; then
    x = (x - mean) / std as the contract's normalisation says. `dataset` comes from `fit_to_contract`.
    """
    size = batch_size or len(order)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        labels = dataset.labels[chosen].astype(contract.labels_dtype, copy=False)
        yield _normalised(dataset.features[chosen], contract), np.ascontiguousarray(labels).reshape(labels.shape)


def _normalised(features: AnyArray, contract: DataContract) -> Array:
    """`features` [n, ...] is a copy that may be changed in place."""
    x = np.ascontiguousarray(features, dtype=contract.dtype)
    if not _is_float(contract.dtype):
        return x
    if features.dtype == np.uint8:
        x /= x.dtype.type(255)
    mean, std = contract.normalisation.mean, contract.normalisation.std
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


def _fit_features(features: AnyArray, contract: DataContract, where: str) -> AnyArray:
    features = _reshaped(features, contract, where)
    want = np.dtype(contract.dtype)
    channels = contract.features[0] if contract.features else 1
    for values in (contract.normalisation.mean, contract.normalisation.std):
        if len(values) not in (1, channels):
            raise DataError(
                f"{where}: the contract normalises {len(values)} channels but its features have {channels}",
                hint="re-export the bundle",
            )
    if features.dtype.kind not in "buif":
        raise DataError(f"{where}: features are {features.dtype}; expected numbers", hint=f"convert them to {want}")
    if features.dtype == np.uint8:
        return features  # fits every dtype of a contract except bool, and `batches` converts
    if not _is_float(contract.dtype):
        return _to_integers(features, want, where, "features")
    with np.errstate(over="ignore"):  # the check below reports it better
        converted = features.astype(want, copy=False)
    for start in range(0, len(converted), CHUNK):
        finite = np.isfinite(converted[start : start + CHUNK])
        if not finite.all():
            at = start + int(np.argwhere(~finite)[0][0])
            raise DataError(
                f"{where}: example {at} has a feature that is {_first(features[at], converted[at])}; "
                f"expected finite {want} numbers",
                hint="remove the example or fill in its missing values",
            )
    return converted


def _reshaped(features: AnyArray, contract: DataContract, where: str) -> AnyArray:
    got, want = features.shape[1:], contract.features
    if got == want:
        return features
    adds_channel = want == (1, *got)
    flattens = len(want) <= 1 and math.prod(got) == math.prod(want)
    if adds_channel or flattens:
        return features.reshape(len(features), *want)
    hint = "resize or convert the data, or export the bundle for this shape"
    if len(got) == len(want) == 3 and (got[2], got[0], got[1]) == want:
        hint = "channels come first: transpose [height, width, channels] to [channels, height, width]"
    raise DataError(f"{where}: an example has shape {list(got)}; expected {list(want)}", hint=hint)


def _fit_labels(labels: AnyArray, contract: DataContract, where: str) -> AnyArray:
    want = np.dtype(contract.labels_dtype)
    got, shape = labels.shape[1:], contract.labels
    if got != shape:
        if math.prod(got) != math.prod(shape) or math.prod(got) != 1:
            hint = "give class numbers instead of one-hot rows" if got and contract.classes == got[0] else None
            raise DataError(f"{where}: a label has shape {list(got)}; expected {list(shape)}", hint=hint)
        labels = labels.reshape(len(labels), *shape)
    if labels.dtype.kind not in "buif":
        raise DataError(f"{where}: labels are {labels.dtype}; expected numbers", hint=f"convert them to {want}")
    if _is_float(contract.labels_dtype):
        converted = labels.astype(want, copy=False)
        finite = np.isfinite(converted)
        if not finite.all():
            at = int(np.argwhere(~finite)[0][0])
            raise DataError(f"{where}: label {at} is {_first(labels[at], converted[at])}; expected finite numbers")
        return converted
    converted = _to_integers(labels, want, where, "labels")
    if contract.classes is not None:
        outside = (converted < 0) | (converted >= contract.classes)
        if outside.any():
            first = tuple(int(i) for i in np.argwhere(outside)[0])
            raise DataError(
                f"{where}: label {first[0]} is {converted[first]}; expected 0..{contract.classes - 1}",
                hint=f"the bundle knows {contract.classes} classes, numbered from 0",
            )
    return converted


def _to_integers(values: AnyArray, want: np.dtype[Any], where: str, what: str) -> AnyArray:
    """`values` as `want`, an integer dtype, refused unless every value stays what it is."""
    if values.dtype == want:
        return values
    with np.errstate(invalid="ignore"):
        converted = values.astype(want)
        same = converted == values
    if not same.all():
        at = tuple(int(i) for i in np.argwhere(~same)[0])
        raise DataError(f"{where}: {what} at {at[0]} are {values[at]}, which is not a whole number that fits {want}")
    return converted


def _first(original: AnyArray, converted: AnyArray) -> Any:
    """The first value of an example that did not survive conversion."""
    return np.atleast_1d(original)[~np.isfinite(np.atleast_1d(converted))][0]


def _is_float(dtype: str) -> bool:
    return np.dtype(dtype).kind == "f"
