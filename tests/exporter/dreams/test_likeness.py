"""The leak check: how like an own image a dream is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dreamed import CLASSES, carried_out, normalised, pixels
from torch import nn

from edgefl.bundle import Bundle
from edgefl.data_contract import Normalisation
from edgefl.method import Task
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import perform
from edgefl_exporter import export
from edgefl_exporter.programs.likeness import likeness

LIKENESS = Task(program="likeness", load=("dreams",), reset=("nearest",), batch_size=4)


def test_a_dream_that_is_an_own_image_is_found_out(bundles: dict[str, Bundle]) -> None:
    runtime = Runtime(bundles["none"])
    dreams = np.concatenate([pixels(3, seed=5), pixels()[-1:]])
    outcome = carried_out(runtime, LIKENESS, dreams=dreams)
    nearest = runtime.view("nearest")
    own, theirs = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in map(normalised, (pixels(), dreams)))
    cosines = F.cosine_similarity(theirs[:, None], own[None], dim=2).amax(1)
    np.testing.assert_allclose(nearest, cosines, atol=1e-6)
    assert outcome.metrics["likeness.likeness_most"] == pytest.approx(1, abs=1e-6) == nearest[-1]
    assert outcome.metrics["likeness.likeness"] == pytest.approx(nearest.mean(), abs=1e-6)
    assert nearest[:3].max() < 0.6  # 40 values of noise


def test_images_of_one_colour_are_like_nothing(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, CLASSES))
    compare = partial(likeness, dreams=2, normalisation=Normalisation())
    bundle = export(model, torch.zeros(1, 1, 4, 4), out=tmp_path / "b", name="b", programs=(), own_programs=(compare,))
    dreams = np.full((2, 1, 4, 4), 128, np.uint8)
    data = Dataset(np.random.default_rng(0).random((5, 1, 4, 4), np.float32), np.zeros(5, np.int64))
    feeds = {"train": fit_to_contract(data, bundle.manifest.data, "test")}
    outcome = perform(Runtime(bundle), [LIKENESS], {"dreams": dreams}, feeds, device="d")
    assert outcome.metrics["likeness.likeness_most"] == pytest.approx(0, abs=1e-3)
