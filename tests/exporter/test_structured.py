"""A model whose forward returns more than its predictions, and that declares settings of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgefl.errors import BundleError, InputError, LoweringError
from edgefl_device.engines.runtime import Runtime
from edgefl_exporter import export
from edgefl_exporter.models.parts import declare_setting, settings_of
from edgefl_exporter.programs.losses import Labels, Loss


class TwoHeads(nn.Module):
    """Two heads on one body; how much the second counts is a setting."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)
        declare_setting(self, "factor", 0.25)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.body(x).tanh()
        return self.first(h), self.second(h), self.get_buffer("factor")

    def read_by(self, loss: Loss) -> Loss:
        return BothHeads(loss)


@dataclass(frozen=True)
class BothHeads:
    base: Loss
    name: str = "both heads"

    @property
    def measures(self) -> Any:
        return (*self.base.measures, ("second_loss", "mean"))

    def labels(self, output: Any) -> Labels:
        return self.base.labels(output[0])

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        return self.base.sample(labels, count, generator)

    def predictions(self, output: Any) -> dict[str, Tensor]:
        return {"logits": output[0], "second": output[1]}

    def each(self, output: Any, labels: Tensor) -> Tensor:
        return self.base.each(output[0], labels) + output[2] * self.base.each(output[1], labels)

    def torch(self, output: Any, labels: Tensor) -> Tensor:
        return self.base.torch(output[0], labels) + output[2] * self.base.torch(output[1], labels)

    def measure(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        return self.base.measure(output[0], labels) | {"second_loss": self.base.each(output[1], labels)}

    def slack(self, output: Any) -> dict[str, Tensor]:
        return self.base.slack(output[0])


@pytest.fixture(scope="module")
def model() -> TwoHeads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return TwoHeads()


def test_programs_have_the_setting_every_prediction_and_every_metric(model: TwoHeads, tmp_path: Path) -> None:
    bundle = export(model, torch.zeros(1, 6), out=tmp_path / "b", name="b", private=["second.*"])
    manifest = bundle.manifest
    assert manifest.program("train").settings()["factor"] == 0.25
    assert [o.name for o in manifest.program("predict").outputs] == ["logits", "second"]
    assert [o.name for o in manifest.program("evaluate").outputs] == ["loss", "correct", "second_loss"]
    assert {t.name: t.fuse for t in manifest.state}["second.weight"] == "local"
    assert {t.name for t in manifest.shared()} == {"body.weight", "body.bias", "first.weight", "first.bias"}

    runtime = Runtime(bundle)
    x, y = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32), np.arange(7) % 3
    for factor in (0.0, 2.0):
        got = runtime.step("evaluate", {"x": x, "y": y, "factor": np.array(factor, np.float32)})
        first, second, _ = model(torch.from_numpy(x))
        labels = torch.from_numpy(y)
        want = F.cross_entropy(first, labels) + factor * F.cross_entropy(second, labels)
        assert got["loss"].item() == pytest.approx(want.item(), rel=1e-5)
        assert got["second_loss"].item() == pytest.approx(F.cross_entropy(second, labels).item(), rel=1e-5)


def test_shared_tensors_are_fused_under_the_names_of_their_groups(model: TwoHeads, tmp_path: Path) -> None:
    groups = {"first.*": "head.*", "body.bias": "offset", "second.*": "other.*"}
    options = {"private": ["second.*"], "programs": ("train",), "share_as": groups}
    manifest = export(model, torch.zeros(1, 6), out=tmp_path / "b", name="b", **options).manifest
    assert {group: tensor.name for group, tensor in manifest.fusion_map().items()} == {
        "body.weight": "body.weight",
        "offset": "body.bias",
        "head.weight": "first.weight",
        "head.bias": "first.bias",
    }
    with pytest.raises(InputError, match="share_as 'third' matches no tensor"):
        export(model, torch.zeros(1, 6), out=tmp_path / "c", name="c", share_as={"third": "x"})
    with pytest.raises(BundleError, match="two state tensors are in the fusion group 'head'"):
        twice = {"first.weight": "head", "second.weight": "head"}
        export(model, torch.zeros(1, 6), out=tmp_path / "c", name="c", programs=("predict",), share_as=twice)
    assert not (tmp_path / "c").exists()


def test_a_private_pattern_that_matches_nothing_is_refused(model: TwoHeads, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="private 'third.\\*' matches no tensor"):
        export(model, torch.zeros(1, 6), out=tmp_path / "b", name="b", private=["third.*"])
    assert not (tmp_path / "b").exists()


def test_two_modules_cannot_declare_one_setting() -> None:
    with pytest.raises(LoweringError, match="two modules declare the setting 'factor'"):
        settings_of(nn.Sequential(TwoHeads(), TwoHeads()))
