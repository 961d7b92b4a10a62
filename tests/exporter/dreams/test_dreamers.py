"""What of a model that dreams travels, and which models cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dreamed import CLASSES, MODELS, two_layers
from torch import Tensor, nn

from edgefl.bundle import Bundle
from edgefl.errors import InputError, LoweringError
from edgefl_exporter import export
from edgefl_exporter.methods import CoDream


@pytest.mark.parametrize("name", MODELS)
def test_no_weight_ever_leaves_a_device(bundles: dict[str, Bundle], name: str) -> None:
    manifest = bundles[name].manifest
    assert {tensor.name.partition(".")[0] for tensor in manifest.shared()} <= {"dreams", "generator"}
    assert manifest.method == "codream"
    assert list(manifest.programs)[:6] == ["statistics", "dream", "dream_steps", "label", "distill", "likeness"]


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dreams", torch.zeros(4))
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) + self.dreams)


@pytest.mark.parametrize(
    ("model", "x", "options", "error", "message"),
    [
        (nn.Linear(4, 3), torch.zeros(1, 4), {}, LoweringError, "the model has no layer whose statistics a dream"),
        (two_layers(), torch.zeros(1, 4), {"loss": "mse"}, LoweringError, "dreams need classes, which mse has not"),
        (
            nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)),
            torch.zeros(1, dtype=torch.int64),
            {},
            LoweringError,
            "the example input is torch.int64; a dream is float32",
        ),
        (Named(), torch.zeros(1, 4), {}, LoweringError, "a parameter or buffer is called 'dreams', as state of"),
        (Named(), torch.zeros(1, 4), {"method": CoDream(dreams=0)}, InputError, "0 dreams; expected at least 1"),
    ],
)
def test_models_that_cannot_dream(
    tmp_path: Path, model: nn.Module, x: Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export(model, x, out=tmp_path / "b", name="b", **{"method": CoDream(dreams=2)} | options)
    assert not (tmp_path / "b").exists()
