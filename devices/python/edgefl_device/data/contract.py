"""Data at the door: checked against the bundle's data contract once, then cut into batches without further checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgefl.data_contract import DataContract, Feature
from edgefl.errors import DataError
from edgefl_device.data.dataset import AnyArray, Dataset
from edgefl_device.data.labels import fit_labels
from edgefl_device.data.numbers import finite_floats, whole_numbers
from edgefl_device.data.ranges import judged


def fit_all(
    data: Mapping[str, Dataset], contract: DataContract, *, as_is: bool = False
) -> tuple[dict[str, Dataset], str]:
    """All data of one device as the contract wants them, by what they are called in errors, and a note.

    As `fit_to_contract`, and their values are compared with the features' ranges, once for all parts: see
    `edgefl_device.data.ranges`. The note says what was done or let pass; "" where there is nothing to say.
    """
    fitted = {
        where: fit_to_contract(part, contract, where, [other for other in data.values() if other is not part])
        for where, part in data.items()
    }
    notes = []
    for at, feature in enumerate(contract.features):
        arrays = {where: part.others[feature.name] if at else part.features for where, part in fitted.items()}
        arrays, note = judged(arrays, feature, as_is=as_is)
        for where, part in fitted.items():
            others = {**part.others, feature.name: arrays[where]}
            fitted[where] = replace(part, others=others) if at else replace(part, features=arrays[where])
        notes += [f"{feature.name}: {note}" if len(contract.features) > 1 else note] if note else []
    return fitted, "; ".join(notes)


def fit_to_contract(dataset: Dataset, contract: DataContract, where: str, beside: Sequence[Dataset] = ()) -> Dataset:
    """The same examples in the contract's shapes and dtypes. Raises DataError, its line beginning with `where`.

    Shapes: a channel dimension is added ([H, W] to [1, H, W]), features are flattened ([1, 28, 28] to [784]) and flat
    ones take the contract's shape ([64] to [1, 8, 8]); any other difference is refused. Features stay uint8 where the
    contract wants floats, a quarter of the memory: `batches` converts them. Labels become class numbers. `beside`:
    other parts of the same device's data.
    """
    first, *others = contract.features
    features, labels = np.asarray(dataset.others.get(first.name, dataset.features)), np.asarray(dataset.labels)
    if features.ndim == 0 or labels.ndim == 0:
        raise DataError(f"{where}: features and labels must be arrays with one entry per example")
    if len(features) != len(labels):
        raise DataError(
            f"{where}: {len(features)} examples but {len(labels)} labels", hint="every example needs exactly one label"
        )
    if len(features) == 0:
        raise DataError(f"{where}: no examples", hint="a device without data cannot train; give it another source")
    return Dataset(
        _fit_feature(_filled_up(features, first, contract), first, where),
        fit_labels(dataset, contract, where, [one for one in beside if one.names is None]),
        others={one.name: _fit_other(dataset, one, contract, where) for one in others},
    )


def _fit_other(dataset: Dataset, feature: Feature, contract: DataContract, where: str) -> AnyArray:
    """A feature beside the first: an array of its name, or the mask that the lengths of the examples make."""
    if feature.name in dataset.others:
        array = np.asarray(dataset.others[feature.name])
        if array.ndim == 0 or len(array) != len(dataset):
            raise DataError(f"{where}: {feature.name!r} has not one entry for each of {len(dataset)} examples")
        return _fit_feature(_filled_up(array, feature, contract), feature, where)
    if not feature.mask_of:
        wanted = ", ".join(one.name for one in contract.features)
        raise DataError(f"{where}: no array {feature.name!r}; the bundle takes {wanted}")
    masked = next(one for one in contract.features if one.name == feature.mask_of)
    array = dataset.others.get(masked.name, dataset.features)
    lengths = np.full(len(dataset), array.shape[1]) if dataset.lengths is None else dataset.lengths
    there = np.arange(feature.shape[0]) < np.asarray(lengths)[:, None]
    there = there.reshape(*there.shape, *[1] * (len(feature.shape) - 1))
    mask: AnyArray = np.broadcast_to(there, (len(dataset), *feature.shape)).astype(feature.dtype)
    return mask


def _filled_up(features: AnyArray, feature: Feature, contract: DataContract) -> AnyArray:
    """Shorter examples with zeros behind them, where the contract has a mask that says so."""
    has_mask = any(one.mask_of == feature.name for one in contract.features)
    missing = feature.shape[0] - features.shape[1] if has_mask and features.ndim > 1 else 0
    if missing <= 0 or features.shape[2:] != feature.shape[1:]:
        return features
    return np.pad(features, [(0, 0), (0, missing), *[(0, 0)] * (features.ndim - 2)])


def _fit_feature(features: AnyArray, feature: Feature, where: str) -> AnyArray:
    features = _reshaped(features, feature, where)
    want = np.dtype(feature.dtype)
    if features.dtype.kind not in "buif":
        raise DataError(f"{where}: features are {features.dtype}; expected numbers", hint=f"convert them to {want}")
    if features.dtype == np.uint8:
        return features  # fits every dtype of a contract except bool, and `batches` converts
    if not feature.is_float:
        return whole_numbers(features, want, where, "features")
    return finite_floats(features, want, where, "example {} has a feature that is")


def _reshaped(features: AnyArray, feature: Feature, where: str) -> AnyArray:
    got, want = features.shape[1:], feature.shape
    if got == want:
        return features
    adds_channel = want == (1, *got)
    flat = (len(want) <= 1 or len(got) <= 1) and math.prod(got) == math.prod(want)
    if adds_channel or flat:
        return features.reshape(len(features), *want)
    hint = "resize or convert the data, or export the bundle for this shape"
    if len(got) == len(want) == 3 and (got[2], got[0], got[1]) == want:
        hint = "channels come first: transpose [height, width, channels] to [channels, height, width]"
    raise DataError(f"{where}: an example has shape {list(got)}; expected {list(want)}", hint=hint)
