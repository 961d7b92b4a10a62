"""Devices that bring the same digits in different forms end where one form for all would have ended."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle, write
from edgefl.methods.fedavg import FedAvg
from edgefl.runs.simulation import Device, Simulation
from edgefl_device.data import Dataset
from edgefl_device.sources import read, read_splits

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
HALVES = {"low": range(5), "high": range(5, 10)}  # the classes of each device


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A linear model of digits whose classes have words for names, and one without names."""
    from edgefl_exporter import export

    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    options = {"classes": WORDS, "range": (0, 1), "programs": ("train", "evaluate")}
    named = export(model, torch.zeros(1, 1, 8, 8), out=folder / "words", name="words", **options)
    manifest = msgspec.structs.replace(
        named.manifest, data=msgspec.structs.replace(named.manifest.data, class_names=())
    )
    parts = {
        "programs": {name: named.program_bytes(name) for name in manifest.programs},
        "golden": {name: named.golden(name) for name in manifest.programs},
    }
    return {"words": named, "numbers": write(folder / "numbers", manifest, weights=named.weights(), **parts)}


def half(classes: range) -> Dataset:
    """A device's digits as uint8, in the order of their classes as a folder has them."""
    digits = read_splits("digits").train
    mine = np.flatnonzero(np.isin(digits.labels, classes))
    mine = mine[np.argsort(digits.labels[mine], kind="stable")]
    return Dataset((digits.features[mine] * 255).round().astype(np.uint8), digits.labels[mine])


def write_folders(path: Path, data: Dataset) -> Path:
    from PIL import Image

    for i, (pixels, label) in enumerate(zip(data.features, data.labels, strict=True)):
        folder = path / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(folder / f"{i:04}.png")
    (path / "__MACOSX").mkdir()
    return path


def write_csv(path: Path, data: Dataset, *, scale: int, words: bool) -> Path:
    with open(path, "w", newline="") as file:
        for pixels, label in zip(data.features, data.labels, strict=True):
            values = pixels.reshape(-1) if scale == 1 else pixels.reshape(-1) / np.float32(scale)
            csv.writer(file).writerow([*values, WORDS[label] if words else label])
    return path


def ended(bundle: Bundle, data: dict[str, Dataset]) -> float:
    """The accuracy of twelve rounds."""
    fleet = Simulation({"b": bundle}, [Device(name, "b", {"train": part}) for name, part in data.items()])
    method = FedAvg(initial=bundle.shared_weights(), rounds=12, batch_size=16, learning_rate=0.1, seed=0)
    done = list(fleet.rounds(method, RoundSettings(), seed=0))
    test = read_splits("digits").test
    assert test is not None
    return fleet.evaluate("b", done[-1].state.tensors, test)[0]


@pytest.fixture(scope="module")
def control(bundles: dict[str, Bundle]) -> float:
    """As class numbers and pixels, from both."""
    accuracy = ended(bundles["numbers"], {name: half(classes) for name, classes in HALVES.items()})
    assert accuracy > 0.8
    return accuracy


def test_folders_of_some_of_the_classes(bundles: dict[str, Bundle], control: float, tmp_path: Path) -> None:
    data = {name: read(write_folders(tmp_path / name, half(classes))) for name, classes in HALVES.items()}
    assert ended(bundles["numbers"], data) == control


def test_words_in_a_table(bundles: dict[str, Bundle], control: float, tmp_path: Path) -> None:
    data = {
        name: read(write_csv(tmp_path / f"{name}.csv", half(classes), scale=255, words=True))
        for name, classes in HALVES.items()
    }
    assert ended(bundles["words"], data) == pytest.approx(control, abs=0.01)


def test_a_table_of_0_to_255_beside_one_of_0_to_1(bundles: dict[str, Bundle], control: float, tmp_path: Path) -> None:
    low, high = (half(classes) for classes in HALVES.values())
    data = {
        "low": read(write_csv(tmp_path / "low.csv", low, scale=1, words=False)),
        "high": read(write_csv(tmp_path / "high.csv", high, scale=255, words=False)),
    }
    assert ended(bundles["numbers"], data) == pytest.approx(control, abs=0.01)
