"""The proof refuses programs that are wrong now and then: near a kink, by noise, in one setting, from step two on."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgefl.errors import ParityError
from edgefl.manifest import Parity
from edgefl.replay import Runner, relative_error
from edgefl.tensors import Array
from edgefl_exporter import Adam, export
from edgefl_exporter.programs import optimizers, update
from edgefl_exporter.proof.cases import BATCHES, FREE

INF, NAN = float("inf"), float("nan")


def net(*, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3))


def parity(folder: Path, model: nn.Module, program: str = "train", **options: Any) -> Parity:
    made = export(model, torch.zeros(1, 4), out=folder / "m.bundle", name="m", programs=(program,), **options)
    return made.manifest.program(program).parity


class Noisy(Runner):
    """Every output off by a part of itself that depends on all bits of the batch; golden batches are right."""

    part = 0.3

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        right = super().run(values)
        if len(values["x"]) == 6:
            return right
        random = np.random.default_rng(zlib.crc32(values["x"].tobytes()))
        return {name: np.asarray(self.wrong(value, random)) for name, value in right.items()}

    def wrong(self, value: Array, random: np.random.Generator) -> Array:
        if value.dtype != np.float32:
            return value
        return (value * (1 + self.part * random.standard_normal(value.shape))).astype(np.float32)


class SlightlyNoisy(Noisy):
    part = 1e-3


class Kinked(Noisy):
    """Outputs near zero are zero or not, by all bits of the batch: a kink that PyTorch has not."""

    def wrong(self, value: Array, random: np.random.Generator) -> Array:
        return np.where((np.abs(value) < 0.05) & (random.random(value.shape) < 0.5), 0, value).astype(value.dtype)


@pytest.mark.parametrize("runner", [Noisy, SlightlyNoisy, Kinked])
@pytest.mark.parametrize("program", ["predict", "gradient", "train"])
def test_a_noisy_program_is_refused(
    runner: type[Runner], program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own noise is no excuse, however far PyTorch's answer is from any kink."""
    monkeypatch.setattr(sys.modules["edgefl_exporter.build"], "Runner", runner)
    with pytest.raises(ParityError, match=f"program '{program}'"):
        parity(tmp_path, net(), program)


def test_a_gradient_that_is_wrong_near_a_kink_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch cuts at zero, the program below one per cent."""
    real = sys.modules["edgefl_exporter.build"].lower  # type: ignore[attr-defined]

    def lowered(*args: Any, **options: Any) -> bytes:
        monkeypatch.setattr(Cut, "edge", 0.01)
        data: bytes = real(*args, **options)
        monkeypatch.setattr(Cut, "edge", 0.0)
        return data

    monkeypatch.setattr(sys.modules["edgefl_exporter.build"], "lower", lowered)
    with pytest.raises(ParityError, match="differs from PyTorch"):
        parity(tmp_path, net(activation=Cut))


class Cut(nn.Module):
    edge = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > self.edge, x, 0.0)


WRONG_SETTINGS = {
    "proximal": (update.PROXIMAL, -7.0, {"proximal": 0.0}),
    "clip": (update.CLIP_NORM, 100.0, {"clip_norm": 1e6}),
    "clip, gradients added up": (update.CLIP_NORM, 1.1, {"clip_norm": 1e6, "micro_batches": 30}),
    "clip, Adam": (update.CLIP_NORM, 2.0, {"clip_norm": 1e6, "optimizer": Adam()}),
    "a clip that never ends": (update.CLIP_NORM, 0.0, {"clip_norm": 1e-9}),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_a_program_that_is_wrong_in_a_setting_alone_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the default, which turns the setting off, the program is right."""
    setting, factor, options = WRONG_SETTINGS[name]
    real = update.Update._apply

    def wrong(self: update.Update, parameters: Any, gradients: Any, values: Any) -> Any:
        return real(self, parameters, gradients, {**values, setting: values[setting] * factor})

    parity(tmp_path, net(), **options)
    monkeypatch.setattr(update.Update, "_apply", wrong)
    with pytest.raises(ParityError, match="program 'train', check 'batches'"):
        parity(tmp_path, net(), **options)


def test_a_step_counted_one_batch_late_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thirty micro-batches, more than the proof's twenty steps."""
    real = update.Update.step

    def late(self: update.Update, parameters: Any, gradients: Any, values: Any, examples: Tensor) -> Any:
        later = {**values, update.MICRO_BATCHES: values[update.MICRO_BATCHES] + 1}
        return real(self, parameters, gradients, later, examples)

    monkeypatch.setattr(update.Update, "step", late)
    with pytest.raises(ParityError, match="check 'batches'"):
        parity(tmp_path, net(), micro_batches=30)


def test_an_adam_that_is_wrong_from_its_second_step_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = optimizers.Adam.step

    def wrong(self: Adam, parameters: Any, gradients: Any, state: Any, rates: Any, decays: Any) -> Any:
        weights, after = real(
            self, parameters, gradients, {**state, "optimizer.step": state["optimizer.step"] * 0}, rates, decays
        )
        return weights, after | {"optimizer.step": state["optimizer.step"] + 1}

    monkeypatch.setattr(optimizers.Adam, "step", wrong)
    with pytest.raises(ParityError, match="program 'train'"):
        parity(tmp_path, net(), optimizer=Adam())


class Strict(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32, "float32 alone"
        return super().forward(x)


class Cubed(nn.Linear):
    """Twenty steps of 0.05 by its cubed output's squared error go to infinity."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 3


def test_a_model_that_knows_float32_alone_is_proven_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parity(tmp_path, Strict(4, 3)).checks[BATCHES] < 1e-4
    monkeypatch.setattr(sys.modules["edgefl_exporter.build"], "Runner", Noisy)
    with pytest.raises(ParityError):
        parity(tmp_path, Strict(4, 3))


def test_where_pytorch_diverges_twenty_steps_are_proven_at_a_lower_rate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    found = parity(tmp_path, Cubed(4, 1), loss="mse")
    assert all(0 < found.checks[check] < found.looser.get(check, 1e-4) for check in ("20 steps", FREE))


def test_figures_are_finite_numbers_and_a_proof_without_any_has_none(tmp_path: Path) -> None:
    found = parity(tmp_path, net())
    assert found.worst is not None and found.worst <= found.tolerance and np.isfinite(list(found.checks.values())).all()
    assert found.looser.keys() <= found.checks.keys()
    assert Parity("by hand", 1e-4, {}).worst is None
    assert Parity("by hand", 1e-4, {FREE: 7e-3}, {FREE: 1e-2}).worst is None


@pytest.mark.parametrize(
    ("got", "want", "before", "error"),
    [
        ([INF, 1.0], [INF, 2.0], None, 0.5),
        ([NAN, -INF], [NAN, -INF], None, 0.0),
        ([INF], [-INF], None, INF),
        ([NAN], [INF], None, INF),
        ([1.0], [INF], None, INF),
        ([NAN], [1.0], None, INF),
        ([NAN, 3.0], [NAN, 4.0], [0.0, 2.0], 0.5),
    ],
)
def test_values_that_are_not_finite_are_told_apart_and_the_others_compared(
    got: list[float], want: list[float], before: list[float] | None, error: float
) -> None:
    start = None if before is None else np.array(before, np.float32)
    assert relative_error(np.array(got, np.float32), np.array(want, np.float32), start) == error
