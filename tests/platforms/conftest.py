"""Bundles to be replayed in other runtimes: the zoo's smallest, two with Loops, and a net with what they lack."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgefl.bundle import Bundle, write
from edgefl_exporter import SGD, export
from edgefl_exporter.methods import CoDream
from edgefl_exporter.zoo import ZOO


def mixed() -> nn.Module:
    """Both kinds of norm, overlapping pools, GELU; BatchNorm counts its batches in an int64 buffer."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(24),
        nn.GELU(),
        nn.Linear(24, 5),
    )


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """digits from the zoo, `mixed` with momentum (its training step, and its gradients), an equilibrium, and dreams."""
    folder = tmp_path_factory.mktemp("platforms")
    torch.manual_seed(0)
    other, pixels = mixed(), torch.zeros(1, 3, 8, 8)
    train = export(
        other,
        pixels,
        out=folder / "mixed.bundle",
        name="mixed",
        optimizer=SGD(momentum=0.9),
        programs=("train", "gradient"),
    )
    digits, loop = (
        export(*ZOO[name].make(), out=folder / f"{name}.bundle", name=name) for name in ("digits", "deq-digits")
    )
    method = CoDream(dreams=4, generator=True)
    dreams = export(*ZOO["digits"].make(), out=folder / "dreams.bundle", name="dreams", method=method, programs=())
    return [digits, train, loop, dreams]


@pytest.fixture(scope="session")
def wrong(bundles: list[Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """digits, with golden logits twice as large as they should be: off by half of themselves."""
    digits = bundles[0]
    programs = digits.manifest.programs
    golden = {name: digits.golden(name) for name in programs}
    golden["predict"]["out.logits"] = golden["predict"]["out.logits"] * 2
    return write(
        tmp_path_factory.mktemp("wrong") / "wrong.bundle",
        digits.manifest,
        weights=digits.weights(),
        programs={name: digits.bytes_of(program.file) for name, program in programs.items()},
        golden=golden,
    )
