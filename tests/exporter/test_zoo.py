"""The zoo: counts that papers publish, and every model becomes a proven bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgefl.costs import multiply_adds
from edgefl.shapes import read_graph
from edgefl_exporter import export
from edgefl_exporter.catalogue import catalogue
from edgefl_exporter.programs.losses import LOSSES, Structured
from edgefl_exporter.zoo import (
    ZOO,
    attention,
    classifiers,
    described,
    equilibrium,
    mobile,
    recurrent,
    residual,
    segmentation,
    sensors,
)
from edgefl_exporter.zoo.entry import Made, seeded

COUNTS = {
    # McMahan et al. 2016
    "mnist-2nn": 199_210,
    "mnist-cnn": 1_663_370,
    # Yi et al. 2024
    "cnn1": 2_621_558,
    "cnn2": 1_815_142,
    "cnn3": 1_320_558,
    "cnn4": 1_060_358,
    "cnn5": 670_058,
    "lenet5": 61_706,
    "mnist-cnn-gn": 9 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32 + 49 * 32 * 64 + 64 + 64 * 10 + 10,
    "mnist-resnet8": 75_290 - 2 * 9 * 16,  # resnet8's, with one colour instead of three
    # The eight convolutions of VGG-11 (9,217,728 weights), a quarter as wide on both sides but for the colours.
    "vgg11-small": (9_217_728 - 9 * 3 * 64) // 16 + 9 * 3 * 16 + 2 * 16 * 43 + 10 * 128 + 10,
    # 0.27 M in He et al. 2015, with shortcuts that have no parameters; GroupNorm has as many as BatchNorm.
    "resnet20": 269_722,
    "resnet20-gn": 269_722,
    # MLPerf Tiny's 24,908 and 269,992 count BatchNorm's statistics and the biases before it, which it makes useless.
    "kws": 24_908 - 2 * 9 * 64 - 9 * 64,
    "autoencoder": 269_992 - 2 * (8 * 128 + 8) - (8 * 128 + 8),
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_has_the_parameters_that_its_paper_counts(name: str) -> None:
    assert count(ZOO[name].make()[0]) == COUNTS[name]


def test_the_character_lstm_has_two_layers_of_256_over_80_characters() -> None:
    """PyTorch's LSTM has two biases of 4 x 256 in each layer, where the papers' own code has one."""
    lstm = sum(4 * 256 * (width + 256) + 2 * 4 * 256 for width in (8, 256))
    assert count(ZOO["char-lstm"].make()[0]) == 80 * 8 + lstm + 256 * 80 + 80 == 819_920


@pytest.mark.parametrize("name", ZOO)
def test_an_entry_says_what_it_is_and_gives_the_same_weights_to_everybody(name: str) -> None:
    entry = ZOO[name]
    assert entry.loss in LOSSES and entry.reference
    assert entry.about.endswith((".", ")")) and len(entry.about) < 100
    torch.manual_seed(1)
    (model, example), (again, _) = entry.make(), entry.make()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    loss = LOSSES[entry.loss]
    output = model.eval()(torch.cat([example] * 3))
    predicted = (model.read_by(loss) if isinstance(model, Structured) else loss).predictions(output)
    assert example.shape[0] == 1 and all(len(rows) == 3 for rows in predicted.values())


SMALL: dict[str, Callable[[], Made]] = {
    "lenet5": classifiers.lenet5,
    "mnist-cnn-gn": classifiers.mnist_cnn_gn,
    "vgg11": lambda: classifiers.vgg11(width=4),
    "fedmrl cnn": lambda: classifiers.fedmrl_cnn(4, 20),
    "resnet8": seeded(lambda: residual.resnet(8, nn.BatchNorm2d, width=8, image=16)),
    "resnet8-gn": seeded(lambda: residual.resnet(8, residual.group_norm, width=8, image=16)),
    "wrn-10-1": lambda: residual.wrn_16_1(depth=10, width=4),
    "mobilenetv2": lambda: mobile.mobilenetv2(stages=((1, 8, 1, 1), (2, 8, 2, 2))),
    "mobilenetv3": lambda: mobile.mobilenetv3(blocks=((3, 16, 8, True, nn.ReLU, 2), (5, 16, 8, True, nn.Hardswish, 1))),
    "convnext": lambda: mobile.convnext(widths=(8, 12), blocks=1),
    "vit": lambda: attention.vit(image=8, width=16, depth=1),
    "kws": lambda: sensors.kws(width=8, depth=1),
    "kws-1d": lambda: sensors.kws_1d(width=4),
    "tabular": sensors.tabular,
    "autoencoder": lambda: sensors.autoencoder(width=8),
    "deq-digits": equilibrium.deq_digits,
    "deq conv": lambda: (equilibrium.convolutional(1, 8, 16), torch.zeros(1, 1, 16, 16)),
    "unet": lambda: segmentation.unet(width=4, depth=1, image=8),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_of_each_kind_trains_as_in_pytorch(name: str, tmp_path: Path) -> None:
    model, example = SMALL[name]()
    loss = ZOO[name].loss if name in ZOO else "cross_entropy"
    bundle = export(model, example, out=tmp_path / "m.bundle", name="m", loss=loss, programs=("train",))
    assert bundle.manifest.program("train").parity.worst < 1e-4


def test_the_doctor_counts_every_step_of_a_recurrent_layer(tmp_path: Path) -> None:
    model, example = recurrent.char_lstm(width=4, time=3)
    bundle = export(model, example, out=tmp_path / "m.bundle", name="m", loss="next_token", programs=("predict",))
    program = bundle.manifest.program("predict")
    graph = read_graph(program, bundle.bytes_of(program.file), bundle.weights())
    # Four gates of 4 from 8 + 4 values, four from 4 + 4, and 80 characters from 4; three characters in each example.
    assert multiply_adds(graph, 2) == 2 * 3 * (4 * 4 * (8 + 4) + 4 * 4 * (4 + 4) + 80 * 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_model_is_proven_in_its_own_size(name: str, tmp_path: Path) -> None:
    entry = ZOO[name]
    model, example = entry.make()
    bundle = export(model, example, out=tmp_path / "m.bundle", name=name, loss=entry.loss)
    assert bundle.manifest.programs.keys() == {"train", "evaluate", "predict"}
    assert all(p.parity.worst < 1e-4 for p in bundle.manifest.programs.values())


def test_the_catalogue_that_is_read_without_torch_is_the_zoo() -> None:
    assert catalogue() == described()
