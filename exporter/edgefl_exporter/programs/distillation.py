"""What a model learns from everybody's labels of the dreams: soft labels, at a temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from edgefl.manifest import Input
from edgefl.names import TEMPERATURE
from edgefl_exporter.programs.losses import NEAR_TIE, Labels, Loss
from edgefl_exporter.programs.program import Definition
from edgefl_exporter.programs.supervised import Supervised

LEAST = 1e-6  # a probability below counts as this: a label may be zero, its logarithm may not be infinite


@dataclass(frozen=True)
class Distillation:
    """T^2 KL(y_T | softmax(f / T)) of logits f and labels y [batch, classes], probabilities (Hinton, Vinyals, Dean
    2015, arXiv:1503.02531, section 2.1).

    y_T is y^(1/T), normalised: the softmax at temperature T of logits whose softmax is y. `base` knows where a model's
    output has its logits.
    """

    base: Loss
    temperature: Tensor | float = 2.0
    name: str = "distillation"
    measures: tuple[tuple[str, Literal["mean", "sum"]], ...] = (("agreement", "mean"),)

    @property
    def settings(self) -> tuple[Input, ...]:
        return (Input(TEMPERATURE, "float32", (), "setting", float(self.temperature)),)

    def at(self, values: Mapping[str, Tensor]) -> Distillation:
        return replace(self, temperature=values[TEMPERATURE])

    def labels(self, output: object) -> Labels:
        return Labels(tuple(self._logits(output).shape[1:]), "float32")

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        return (3 * torch.randn(count, *labels.shape, generator=generator)).softmax(1)

    def predictions(self, output: Any) -> dict[str, Tensor]:
        return self.base.predictions(output)

    def each(self, output: Any, labels: Tensor) -> Tensor:
        t = self.temperature
        wanted = F.log_softmax(labels.clamp(min=LEAST).log() / t, 1)
        found = F.log_softmax(self._logits(output) / t, 1)
        return (wanted.exp() * (wanted - found)).sum(1) * (t * t)

    def torch(self, output: Any, labels: Tensor) -> Tensor:
        t = float(self.temperature)
        powers = labels.clamp(min=LEAST) ** (1 / t)
        found = F.log_softmax(self._logits(output) / t, dim=1)
        return F.kl_div(found, powers / powers.sum(1, keepdim=True), reduction="batchmean") * t**2

    def measure(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        """Whether the label's greatest probability is the model's too."""
        return {"agreement": (self._logits(output).argmax(1) == labels.argmax(1)).to(torch.float32)}

    def slack(self, output: Any) -> dict[str, Tensor]:
        best = self._logits(output).topk(2, dim=1).values
        near = best[:, 0] - best[:, 1] <= NEAR_TIE * best.abs().amax(1).clamp(min=1e-3)
        return {"agreement": near.to(torch.float32).mean()}

    def _logits(self, output: Any) -> Tensor:
        return self.base.predictions(output)["logits"]


def distill(task: Supervised) -> Definition:
    """A step of training, as the program `train` makes it, towards soft labels."""
    loss = Distillation(task.loss)
    learner = replace(task, samples=replace(task.samples, loss=loss, kind=loss.labels(task.output_of_two)))
    return replace(learner.train(), name="distill", samples=learner.samples)
