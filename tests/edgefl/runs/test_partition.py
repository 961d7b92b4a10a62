"""Partitions: every example goes to exactly one device, whatever the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefl.errors import ConfigError
from edgefl.runs.partition import PARTITIONS, Indices, alike, classes, dirichlet, iid, shards
from edgefl.runs.parts import write_parts

LABELS = np.repeat(np.arange(10), 60)  # 600 examples, 60 of each class


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_exact(parts: list[Indices], devices: int, examples: int) -> None:
    assert len(parts) == devices
    assert np.sort(np.concatenate(parts)).tolist() == list(range(examples))


labels = st.lists(st.integers(0, 9), min_size=1, max_size=200).map(np.array)


@given(labels, st.integers(1, 20), st.integers(0, 2**32))
def test_iid_deals_everything_evenly(labels: np.ndarray, devices: int, seed: int) -> None:
    devices = min(devices, len(labels))
    parts = iid(labels, devices, rng(seed))
    assert_exact(parts, devices, len(labels))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(labels, st.integers(1, 20), st.floats(1e-9, 1e6), st.integers(0, 5), st.integers(0, 2**32))
def test_dirichlet_deals_everything(labels: np.ndarray, devices: int, alpha: float, least: int, seed: int) -> None:
    devices = min(devices, len(labels) // max(least, 1)) or 1
    least = min(least, len(labels))
    parts = dirichlet(labels, devices, alpha, rng(seed), min_examples=least)
    assert_exact(parts, devices, len(labels))
    assert min(len(part) for part in parts) >= least


@given(labels, st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**32))
def test_shards_deal_everything(labels: np.ndarray, devices: int, each: int, seed: int) -> None:
    devices = min(devices, len(labels) // each)
    if devices == 0:
        return
    assert_exact(shards(labels, devices, each, rng(seed)), devices, len(labels))


@given(st.integers(1, 10), st.integers(1, 30), st.integers(1, 10), st.integers(0, 2**32))
def test_classes_deal_everything(names: int, devices: int, each: int, seed: int) -> None:
    each = min(each, names)
    devices = max(devices, -(-names // each))
    labels = np.repeat(np.arange(names), devices)
    parts = classes(labels, devices, each, rng(seed))
    assert_exact(parts, devices, len(labels))
    assert {len(np.unique(labels[part])) for part in parts} == {each}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iid", {}),
        ("dirichlet", {"alpha": 0.3}),
        ("shards", {"shards_per_device": 2}),
        ("classes", {"classes_per_device": 2}),
    ],
)
def test_the_seed_decides(name: str, options: dict[str, float]) -> None:
    def dealt(seed: int) -> list[list[int]]:
        return [part.tolist() for part in PARTITIONS[name](LABELS, 20, rng=rng(seed), **options)]

    assert dealt(1) == dealt(1) != dealt(2)


def test_two_shards_hold_at_most_two_classes() -> None:
    """McMahan's split: 20 shards of 30, so no shard crosses a class of 60."""
    for part in shards(LABELS, 10, 2, rng()):
        assert len(part) == 60
        assert len(np.unique(LABELS[part])) <= 2


def test_alpha_is_how_even() -> None:
    def classes_held(alpha: float) -> float:
        return float(np.mean([len(np.unique(LABELS[part])) for part in dirichlet(LABELS, 10, alpha, rng())]))

    assert classes_held(0.05) < 5 < 9 < classes_held(100)


def test_classes_are_held_evenly() -> None:
    parts = classes(LABELS, 20, 2, rng())
    held = np.concatenate([np.unique(LABELS[part]) for part in parts])
    assert np.bincount(held).tolist() == [4] * 10


def test_iid_takes_labels_that_are_no_classes() -> None:
    parts = iid(np.zeros((10, 2), np.float32), 3, rng())
    assert sorted(np.concatenate(parts)) == list(range(10))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: iid(LABELS, 0, rng()), "0 devices; expected 1 or more"),
        (lambda: iid(LABELS, 601, rng()), "600 examples are too few for 601 devices with at least 1 each"),
        (lambda: dirichlet(LABELS[:, None], 2, 1, rng()), "[600, 1]; this partition needs one class number"),
        (lambda: shards(LABELS.astype(np.float32), 2, 1, rng()), "labels are float32 [600]; this partition needs"),
        (lambda: dirichlet(LABELS, 2, 0, rng()), "alpha is 0; expected a number above 0"),
        (lambda: dirichlet(LABELS, 2, float("nan"), rng()), "alpha is nan"),
        (lambda: dirichlet(LABELS, 10, 1, rng(), min_examples=61), "too few for 10 devices with at least 61 each"),
        (lambda: shards(LABELS, 10, 0, rng()), "shards_per_device is 0"),
        (lambda: shards(LABELS, 10, 61, rng()), "600 examples do not fill 610 shards"),
        (lambda: classes(LABELS, 10, 11, rng()), "classes_per_device is 11; expected 1..10"),
        (lambda: classes(LABELS, 4, 2, rng()), "4 devices with 2 classes each cannot hold all 10 classes"),
        (lambda: classes(np.array([0, 0, 0, 0, 1]), 3, 2, rng()), "class 1 has 1 examples for 3 devices"),
    ],
)
def test_impossible_requests(make: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()  # type: ignore[operator]
    assert message in caught.value.message


@given(st.sampled_from(["iid", "dirichlet", "classes"]), st.integers(5, 20), st.integers(0, 2**32))
def test_a_personal_test_has_the_classes_that_the_device_trains_on(kind: str, devices: int, seed: int) -> None:
    extra = {"iid": (), "dirichlet": (0.3,), "classes": (2,)}[kind]
    parts = PARTITIONS[kind](LABELS, devices, *extra, rng(seed))
    tests = np.tile(np.arange(10), 40)
    dealt = alike(LABELS, parts, tests, rng(seed))
    assert_exact(dealt, devices, len(tests))
    for part, test in zip(parts, dealt, strict=True):
        wanted = np.bincount(LABELS[part], minlength=10) * 40 / 60
        assert np.abs(np.bincount(tests[test], minlength=10) - wanted).max() <= 1


def test_a_class_that_nobody_trains_on_is_nobodys_test() -> None:
    dealt = alike(np.array([3, 3, 5]), [np.array([0]), np.array([1, 2])], np.array([5, 4, 3, 3, 4]), rng())
    assert [sorted(test.tolist()) for test in dealt] in ([[2], [0, 3]], [[3], [0, 2]])


def test_parts_of_so_many_examples_are_of_the_data_set_and_drawn_by_the_seed(tmp_path: Path) -> None:
    def made(seed: int) -> tuple[dict[str, list[int]], np.ndarray]:
        folder = tmp_path / str(seed)
        counts = write_parts("digits", folder, ["a", "b"], "iid", 0.5, 2, seed, examples=60).counts
        return counts, np.concatenate([np.load(folder / f"{name}.npz")["x"] for name in ("a", "b")])

    counts, images = made(0)
    assert sum(counts["a"]) + sum(counts["b"]) == len(images) == 60
    assert sum(counts["test"]) == 360  # all of it
    assert len(np.unique(images, axis=0)) == 60
    assert not np.array_equal(images, made(1)[1])
