"""Deal one data set out to emulated devices: evenly, or as unevenly as the literature does.

Every function returns one array of indices per device; each example goes to exactly one device. `rng` is the
only source of chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgefl.errors import ConfigError

Labels = npt.NDArray[Any]  # [examples], class numbers
Indices = npt.NDArray[np.intp]


def iid(labels: Labels, devices: int, rng: np.random.Generator) -> list[Indices]:
    """Shuffled and cut into equal parts; sizes differ by at most one."""
    _check(labels, devices)
    return np.array_split(rng.permutation(len(labels)), devices)


def dirichlet(
    labels: Labels, devices: int, alpha: float, rng: np.random.Generator, *, min_examples: int = 1
) -> list[Indices]:
    """Each class dealt out in proportions drawn from Dirichlet(alpha): small alpha, few classes per device.

    As Hsu, Qi, Brown, arXiv:1909.06335 and its successors. A device left with fewer than `min_examples` gets
    examples at random from the largest device, so that small alphas succeed as well; the usual redrawing until
    all are large enough may never end.
    """
    _check_classes(labels, devices, min_examples)
    if not alpha > 0 or not np.isfinite(alpha):
        raise ConfigError(f"alpha is {alpha}; expected a number above 0")
    parts: list[list[Indices]] = [[] for _ in range(devices)]
    for name in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == name))
        cuts = np.cumsum(rng.dirichlet(np.full(devices, alpha)))[:-1] * len(members)
        for part, piece in zip(parts, np.split(members, np.round(cuts).astype(int)), strict=True):
            part.append(piece)
    dealt = [rng.permutation(np.concatenate(part)) for part in parts]
    for poor in range(devices):
        while (missing := min_examples - len(dealt[poor])) > 0:
            rich = max(range(devices), key=lambda i: len(dealt[i]))
            moved = min(missing, len(dealt[rich]) - min_examples)
            dealt[poor] = np.concatenate([dealt[poor], dealt[rich][:moved]])
            dealt[rich] = dealt[rich][moved:]
    return dealt


def shards(labels: Labels, devices: int, shards_per_device: int, rng: np.random.Generator) -> list[Indices]:
    """Sorted by label, cut into equal shards, each device given `shards_per_device` of them at random.

    The pathological split of McMahan et al., arXiv:1602.05629, section 3 (MNIST: 100 devices, 2 shards of 300).
    """
    _check_classes(labels, devices)
    if shards_per_device < 1:
        raise ConfigError(f"shards_per_device is {shards_per_device}; expected 1 or more")
    count = devices * shards_per_device
    if count > len(labels):
        raise ConfigError(
            f"{len(labels)} examples do not fill {count} shards ({devices} devices with {shards_per_device} each)",
            hint="fewer devices or fewer shards",
        )
    pieces = np.array_split(np.argsort(labels, kind="stable"), count)
    given = rng.permutation(count).reshape(devices, shards_per_device)
    return [np.concatenate([pieces[shard] for shard in row]) for row in given]


def classes(labels: Labels, devices: int, classes_per_device: int, rng: np.random.Generator) -> list[Indices]:
    """Each device holds exactly `classes_per_device` classes; a class is shared evenly by the devices that hold it.

    As FedMRL's CIFAR-10 with 2 classes per device, arXiv:2406.00488.
    """
    _check_classes(labels, devices)
    names = np.unique(labels)
    if not 1 <= classes_per_device <= len(names):
        raise ConfigError(f"classes_per_device is {classes_per_device}; expected 1..{len(names)}")
    if devices * classes_per_device < len(names):
        raise ConfigError(
            f"{devices} devices with {classes_per_device} classes each cannot hold all {len(names)} classes",
            hint="more devices or more classes per device",
        )
    holders: list[list[int]] = [[] for _ in names]
    for device in range(devices):
        # The least held classes first, ties at random: every class finds a holder, and holders stay balanced.
        chance = rng.random(len(names))
        for chosen in sorted(range(len(names)), key=lambda c: (len(holders[c]), chance[c]))[:classes_per_device]:
            holders[chosen].append(device)
    parts: list[list[Indices]] = [[] for _ in range(devices)]
    for name, holding in zip(names, holders, strict=True):
        members = rng.permutation(np.flatnonzero(labels == name))
        if len(members) < len(holding):
            raise ConfigError(
                f"class {name} has {len(members)} examples for {len(holding)} devices", hint="fewer devices"
            )
        for device, piece in zip(holding, np.array_split(members, len(holding)), strict=True):
            parts[device].append(piece)
    return [np.concatenate(part) for part in parts]


def alike(labels: Labels, parts: Sequence[Indices], others: Labels, rng: np.random.Generator) -> list[Indices]:
    """Deal `others`, a test set, so that each device has the classes of its own part of `labels`: a personal test.

    Each class of `others` is cut in proportion to the examples of it that devices have; one that nobody has is left.
    """
    dealt: list[list[Indices]] = [[] for _ in parts]
    for name in np.unique(others):
        held = np.array([np.count_nonzero(labels[part] == name) for part in parts])
        members = rng.permutation(np.flatnonzero(others == name)) if held.any() else np.empty(0, np.intp)
        cuts = np.round(np.cumsum(held)[:-1] / max(held.sum(), 1) * len(members)).astype(int)
        for mine, piece in zip(dealt, np.split(members, cuts), strict=True):
            mine.append(piece)
    return [np.concatenate(mine) for mine in dealt]


PARTITIONS: dict[str, Callable[..., list[Indices]]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "shards": shards,
    "classes": classes,
}


def has_classes(labels: Labels) -> bool:
    """Whether there is one class number, 0 or more, per example."""
    return labels.ndim == 1 and (labels.dtype.kind in "bu" or (labels.dtype.kind == "i" and bool((labels >= 0).all())))


def _check_classes(labels: Labels, devices: int, min_examples: int = 1) -> None:
    _check(labels, devices, min_examples)
    if not has_classes(labels):
        raise ConfigError(
            f"labels are {labels.dtype} {list(labels.shape)}; this partition needs one class number per example",
            hint='partition = "iid" takes any labels',
        )


def _check(labels: Labels, devices: int, min_examples: int = 1) -> None:
    if devices < 1:
        raise ConfigError(f"{devices} devices; expected 1 or more")
    if min_examples < 0:
        raise ConfigError(f"min_examples is {min_examples}; expected 0 or more")
    if devices * max(min_examples, 1) > len(labels):
        raise ConfigError(
            f"{len(labels)} examples are too few for {devices} devices with at least {max(min_examples, 1)} each",
            hint="fewer devices or more data",
        )
