"""Labels at the door: one numbering for the whole fleet, which is the contract's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edgefl.data_contract import DataContract, class_name
from edgefl.errors import DataError, nearest
from edgefl.protocol import MOST_COUNTED
from edgefl_device.data.dataset import AnyArray, Dataset
from edgefl_device.data.numbers import finite_floats, whole_numbers

SHOWN = 12  # names in a line


def fit_labels(dataset: Dataset, contract: DataContract, where: str, beside: Iterable[Dataset] = ()) -> AnyArray:
    """The labels in the contract's shape and dtype. Raises DataError, its line beginning with `where`.

    Names count, where the data have them: a class is the one of that name in the contract. Numbers are class numbers.
    `beside`: other parts of the same device's data, whose numbers mean the same as these.
    """
    labels = np.asarray(dataset.labels)
    if dataset.names is not None:
        labels = _by_name(labels, dataset.names, contract, where)
    want = np.dtype(contract.labels_dtype)
    got, shape = labels.shape[1:], contract.labels
    if got != shape:
        if math.prod(got) != math.prod(shape) or math.prod(got) != 1:
            hint = "give class numbers instead of one-hot rows" if got and contract.classes == got[0] else None
            raise DataError(f"{where}: a label has shape {list(got)}; expected {list(shape)}", hint=hint)
        labels = labels.reshape(len(labels), *shape)
    if labels.dtype.kind not in "buif":
        raise DataError(f"{where}: labels are {labels.dtype}; expected numbers", hint=f"convert them to {want}")
    if want.kind == "f":
        return finite_floats(labels, want, where, "label {} is")
    converted = whole_numbers(labels, want, where, "labels")
    if contract.classes is None:
        return converted
    if dataset.names is None and contract.class_names:
        converted = _numbers_or_names(converted, [np.asarray(one.labels) for one in beside], contract, where)
    outside = (converted < 0) | (converted >= contract.classes)
    if contract.ignored_label is not None:
        outside &= converted != contract.ignored_label
    if outside.any():
        first = tuple(int(i) for i in np.argwhere(outside)[0])
        raise DataError(
            f"{where}: label {first[0]} is {converted[first]}; expected 0..{contract.classes - 1}",
            hint=f"the bundle knows {_classes(contract)}, numbered from 0",
        )
    return converted


def label_counts(dataset: Dataset, contract: DataContract) -> list[int]:
    """How many examples, or parts of one, are of class 0, 1, ... [classes]; [] where labels are no class numbers, or
    there are more than MOST_COUNTED. The data are fitted to the contract."""
    if contract.classes is None or contract.classes > MOST_COUNTED:
        return []
    labels = np.asarray(dataset.labels).reshape(-1)
    known = labels[(labels >= 0) & (labels < contract.classes)]
    return [int(n) for n in np.bincount(known.astype(np.int64), minlength=contract.classes)]


def _by_name(labels: AnyArray, names: Mapping[int, str], contract: DataContract, where: str) -> AnyArray:
    """Labels of the source as class numbers of the contract."""
    if labels.dtype.kind not in "iu" or (unknown := [one for one in np.unique(labels).tolist() if one not in names]):
        said = f"label {unknown[0]}" if labels.dtype.kind in "iu" else f"labels of {labels.dtype}"
        raise DataError(f"{where}: {said} among classes that have names, {_listed(names.values())}")
    there = {label: class_name(names[label]) for label in np.unique(labels).tolist()}
    if contract.classes is None:
        raise DataError(
            f"{where}: labels are words, {_listed(there.values())}; the bundle's are {contract.labels_dtype} numbers",
            hint="is the right column the label?",
        )
    if not contract.class_names:
        if all(map(_is_number, there.values())):  # folders that are called by the class numbers
            return _mapped(labels, {label: int(name) for label, name in there.items()})
        raise DataError(
            f"{where}: classes are called {_listed(there.values())}; "
            f"the bundle has {contract.classes} classes without names",
            hint="give them names for the whole fleet: edgefl export --classes NAME,NAME,... or --classes FILE",
        )
    number = {name: i for i, name in enumerate(contract.class_names)}
    number = {str(int(name)): i for name, i in number.items() if _is_number(name)} | number  # a folder may be called 03
    found: dict[int, int] = {}
    for label, name in there.items():
        match = number.get(name, number.get(str(int(name)) if _is_number(name) else name))
        if match is None:
            raise DataError(
                f"{where}: class {name!r} is none of the bundle's; "
                f"the data have {_listed(there.values())}, the bundle has {_listed(contract.class_names)}",
                hint=_meant(name, contract.class_names),
            )
        found[label] = match
    if len(set(found.values())) < len(found):
        raise DataError(f"{where}: two of {_listed(there.values())} are one class of the bundle")
    return _mapped(labels, found)


def _numbers_or_names(labels: AnyArray, beside: Iterable[AnyArray], contract: DataContract, where: str) -> AnyArray:
    """Numbers of a file, where classes may be called by other numbers: refused where they could mean either."""
    names = contract.class_names
    if not all(map(_is_number, names)) or [int(name) for name in names] == list(range(len(names))):
        return labels
    called = {int(name): i for i, name in enumerate(names)}
    all_labels = [labels, *(other for other in beside if other.dtype.kind in "iu")]
    there = sorted({int(one) for part in all_labels for one in np.unique(part)} - {contract.ignored_label})
    if not all(label in called for label in there) or all(called[label] == label for label in there):
        return labels
    if all(0 <= label < len(names) for label in there):
        raise DataError(
            f"{where}: labels {_listed(map(str, there))} are class numbers, and other classes are called so: "
            f"{_listed(names)}",
            hint="say which are meant: a folder per class, or other names for the classes (edgefl export --classes)",
        )
    ignored = {} if contract.ignored_label is None else {contract.ignored_label: contract.ignored_label}
    return _mapped(labels, {label: called[label] for label in there} | ignored)


def _mapped(labels: AnyArray, numbers: Mapping[int, int]) -> AnyArray:
    """Each label as the number that it has in `numbers`, which knows them all."""
    known = sorted(numbers)
    mapped: AnyArray = np.array([numbers[one] for one in known], np.int64)[np.searchsorted(known, labels)]
    return mapped


def _meant(name: str, names: tuple[str, ...]) -> str | None:
    """What was perhaps meant by a name that is not there."""
    alike = next((one for one in names if one.casefold() == name.casefold()), None)
    return f"did you mean {alike!r}?" if alike else nearest(name, names)


def _is_number(name: str) -> bool:
    return name.isdecimal()


def _classes(contract: DataContract) -> str:
    names = f": {_listed(contract.class_names)}" if contract.class_names else ""
    return f"{contract.classes} classes{names}"


def _listed(names: Any) -> str:
    """Names in one line, a long list cut."""
    found = list(names)
    more = f" ... ({len(found)} in all)" if len(found) > SHOWN else ""
    return ", ".join(one[:40] for one in found[:SHOWN]) + more
