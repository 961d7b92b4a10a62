"""What a device's own data must look like: the part of a manifest that people's data have to meet. With its checks.

    DataContract((Feature((1, 28, 28), "float32", range=(0.0, 1.0)),), classes=2, class_names=("cat", "dog"))

What a device does with its data for it is in `edgefl_device.data.contract`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

import msgspec
import numpy as np

from edgefl.errors import BundleError

MOST_CHARACTERS = 200  # of a class's name
LABELS = "y"  # what the array of labels is called beside the features
UNIT, SYMMETRIC = (0.0, 1.0), (-1.0, 1.0)  # the ranges to which pixels are scaled
_FEATURE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")
Dtype = Literal["float32", "float16", "int64", "int32", "uint8", "bool"]


class _Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Normalisation(_Frozen, frozen=True):
    """x = (x - mean) / std, per channel or one for all."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Feature(_Frozen, frozen=True):
    """One array of an example, without the batch dimension.

    `range`: lowest and highest value, before normalisation; None where nobody has said. `mask_of`: the name of the
    feature of which this one says, along its first dimensions, what is there (1) and what only fills it up (0).
    """

    shape: tuple[int, ...]
    dtype: Dtype
    name: str = "x"
    range: tuple[float, float] | None = None
    normalisation: Normalisation = Normalisation()
    mask_of: str = ""

    @property
    def is_float(self) -> bool:
        return np.dtype(self.dtype).kind == "f"

    @property
    def pixels(self) -> tuple[float, float] | None:
        """What 0 and 255 of uint8 data become; None where they are numbers like any others."""
        return (self.range or UNIT) if self.is_float and self.range in (None, UNIT, SYMMETRIC) else None


class DataContract(_Frozen, frozen=True):
    """Features, nearly always one, and labels.

    `labels`: the shape of one label. `classes`: labels are 0..classes-1; None where they are no class numbers.
    `class_names`: of all classes in their order, or empty. `ignored_label`: what may stand in place of a class number,
    because the programs' loss leaves it out.
    """

    features: tuple[Feature, ...]
    labels: tuple[int, ...] = ()
    labels_dtype: Dtype = "int64"
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    ignored_label: int | None = None

    @property
    def feature(self) -> Feature:
        """The only feature. Raises BundleError where there are several."""
        if len(self.features) != 1:
            names = ", ".join(feature.name for feature in self.features)
            raise BundleError(f"the bundle takes {len(self.features)} features, {names}; expected one")
        return self.features[0]

    def has(self, name: str) -> bool:
        """Whether a program's input may take the feature of this name; "" is the only one."""
        return len(self.features) == 1 if not name else any(feature.name == name for feature in self.features)


def class_name(text: str) -> str:
    """A class's name as it is compared: folders on some systems hold letters and their accents apart."""
    return unicodedata.normalize("NFC", text.strip())


def check_class_names(names: Iterable[str], classes: int | None) -> None:
    """Raise ValueError, one line, unless these are the names of so many classes."""
    found = list(names)
    if classes is None:
        raise ValueError("class names, but labels are no class numbers")
    if len(found) != classes:
        raise ValueError(f"{len(found)} class names for {classes} classes")
    taken: set[str] = set()
    for name in found:
        if name != class_name(name) or not name.isprintable() or not 0 < len(name) <= MOST_CHARACTERS:
            raise ValueError(
                f"class name {name[:MOST_CHARACTERS]!r}: expected 1 to {MOST_CHARACTERS} visible characters"
            )
        if name in taken:
            raise ValueError(f"two classes are called {name!r}")
        taken.add(name)


def check_data(data: DataContract, where: str) -> None:
    """Raise BundleError, its line beginning with `where`, for a contract that no data can meet."""
    by_name = {feature.name: feature for feature in data.features}
    if not data.features or len(by_name) < len(data.features):
        raise BundleError(f"{where}: data: {'two features have one name' if data.features else 'no features'}")
    for feature in data.features:
        if fault := _fault(feature, by_name):
            raise BundleError(f"{where}: data: feature {feature.name[:100]!r}: {fault}")
    if fault := _labels_fault(data):
        raise BundleError(f"{where}: data: {fault}")


def _fault(feature: Feature, by_name: dict[str, Feature]) -> str:
    """What is wrong with a feature; "" where nothing is."""
    if not _FEATURE.fullmatch(feature.name) or feature.name == LABELS:
        return f"expected a name of letters, digits, _ and ., and not {LABELS!r}, which are the labels"
    if any(n < 1 for n in feature.shape):
        return f"its shape is {list(feature.shape)}; expected numbers above 0"
    if feature.range is not None:
        low, high = feature.range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            return f"its range is {low:g}..{high:g}; expected two finite numbers, the lower one first"
    channels = feature.shape[0] if feature.shape else 1
    for what, values in (("mean", feature.normalisation.mean), ("std", feature.normalisation.std)):
        if len(values) not in (1, channels):
            return f"{what} has {len(values)} numbers; expected 1, or {channels}: one for each channel"
        if not all(map(math.isfinite, values)) or (what == "std" and min(values) <= 0):
            return f"{what} is {', '.join(map(str, values))}; expected finite numbers, std above 0"
    if feature.mask_of:
        masked = by_name.get(feature.mask_of)
        if masked is None or masked.mask_of:
            return f"it is the mask of {feature.mask_of[:100]!r}, which is no feature that can have one"
        if not feature.shape or feature.shape != masked.shape[: len(feature.shape)]:
            return f"its shape is {list(feature.shape)}; expected the first dimensions of {list(masked.shape)}"
    return ""


def _labels_fault(data: DataContract) -> str:
    """What is wrong with the labels; "" where nothing is."""
    if any(n < 1 for n in data.labels):
        return f"the shape of a label is {list(data.labels)}; expected numbers above 0"
    if data.classes is not None and data.classes < 1:
        return f"{data.classes} classes; expected 1 or more"
    if data.class_names:
        try:
            check_class_names(data.class_names, data.classes)
        except ValueError as error:
            return str(error)
    if data.ignored_label is not None:
        kind = np.dtype(data.labels_dtype)
        fits = kind.kind in "iu" and np.iinfo(kind).min <= data.ignored_label <= np.iinfo(kind).max
        if data.classes is None or not fits:
            return f"labels {data.ignored_label} are ignored, but labels are no class numbers of {data.labels_dtype}"
    return ""
