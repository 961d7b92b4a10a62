"""FedProto: models of any architecture that agree on what the features of each class look like on average.

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, "FedProto: Federated Prototype Learning across Heterogeneous Clients", AAAI
2022, arXiv:2105.00243. With the features f of the model before its last Linear, [batch, d], and prototypes p:

    loss = L(logits, y) + prototype_weight * mean over d of (f - p[y])^2        where p[y] is known (eq. 7 and 8)

The paper leaves the distance open, and takes it from a device's means. Here it is each example's, and a mean over
features, so that the weight means the same for any d. The program `prototypes` gives the sum of each class's features,
and how many examples it has. Only these leave a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from edgefl.errors import LoweringError
from edgefl.manifest import Output
from edgefl.names import FEATURES, KNOWN, LABELS, PROTOTYPE_COUNTS, PROTOTYPE_SUMS, PROTOTYPE_WEIGHT, PROTOTYPES
from edgefl_exporter.models.parts import declare_setting
from edgefl_exporter.programs.losses import NEAR_TIE, Labels, Loss
from edgefl_exporter.programs.program import Definition, Values
from edgefl_exporter.programs.split import Split
from edgefl_exporter.programs.supervised import Supervised


class Seen(NamedTuple):
    """What a model with prototypes returns for a batch."""

    logits: Tensor  # [batch, classes]
    features: Tensor  # [batch, d]
    prototypes: Tensor  # [classes, d]
    known: Tensor  # [classes], 1 or 0
    weight: Tensor  # []


class Prototypes(nn.Module):
    """A model, and everybody's prototypes as buffers. The setting `prototype_weight` (lambda) is 1 by default."""

    prototypes: Tensor
    known: Tensor

    def __init__(self, model: nn.Module, example_input: Tensor) -> None:
        """Raises LoweringError for a model that does not end with a Linear."""
        super().__init__()
        split = Split(model, example_input)
        self.extractor, self.head = split.extractor, split.head
        self.register_buffer(PROTOTYPES, torch.zeros(self.head.out_features, self.head.in_features))
        self.register_buffer(KNOWN, torch.zeros(self.head.out_features))
        declare_setting(self, PROTOTYPE_WEIGHT, 1.0)

    def forward(self, x: Tensor) -> Seen:
        features = self.extractor(x)
        return Seen(self.head(features), features, self.prototypes, self.known, self.get_buffer(PROTOTYPE_WEIGHT))

    def read_by(self, loss: Loss) -> Loss:
        return PrototypeLoss(loss)


@dataclass(frozen=True)
class PrototypeLoss:
    """A loss over logits, and how far features are from their class's prototype.

    Beside what `base` measures there is `prototype_distance`, the mean of (f - p[y])^2, and `prototype_accuracy`: the
    part of the examples whose nearest known prototype is their class's, the paper's other way to predict (eq. 4).
    """

    base: Loss

    @property
    def name(self) -> str:
        return f"prototypes and {self.base.name}"

    @property
    def measures(self) -> tuple[tuple[str, Literal["mean", "sum"]], ...]:
        return (*self.base.measures, ("prototype_distance", "mean"), ("prototype_accuracy", "mean"))

    def labels(self, output: Any) -> Labels:
        kind = self.base.labels(output.logits)
        if kind.classes is None or kind.shape:
            raise LoweringError(f"prototypes need classes, which {self.base.name} has not", hint="use cross_entropy")
        return kind

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        return self.base.sample(labels, count, generator)

    def predictions(self, output: Seen) -> dict[str, Tensor]:
        return self.base.predictions(output.logits)

    def each(self, output: Seen, labels: Tensor) -> Tensor:
        return self.base.each(output.logits, labels) + output.weight * _distance(output, labels)

    def torch(self, output: Seen, labels: Tensor) -> Tensor:
        far = (output.features - output.prototypes[labels]).square().mean(1) * output.known[labels]
        return self.base.torch(output.logits, labels) + output.weight * far.mean()

    def measure(self, output: Seen, labels: Tensor) -> dict[str, Tensor]:
        nearest = _hot(_far(output).argmin(1), output)
        right = (nearest * _hot(labels, output) * (output.known > 0)).sum(1)
        found = {"prototype_distance": _distance(output, labels), "prototype_accuracy": right}
        return self.base.measure(output.logits, labels) | found

    def slack(self, output: Seen) -> dict[str, Tensor]:
        best = _far(output).topk(2, dim=1, largest=False).values
        near = best[:, 1] - best[:, 0] <= NEAR_TIE * best.abs().amax(1).clamp(min=1e-3)
        return self.base.slack(output.logits) | {"prototype_accuracy": near.to(torch.float32).mean()}


def prototypes(task: Supervised) -> Definition:
    """Of the feed's examples in evaluation mode, for each class: the sum of its features, and how many there are."""

    def step(values: Values) -> dict[str, Tensor]:
        seen, _ = task.parts.call(values, values[FEATURES], training=False)
        assert isinstance(seen, Seen)
        hot = _hot(values[LABELS], seen)
        return {PROTOTYPE_SUMS: hot.transpose(0, 1) @ seen.features, PROTOTYPE_COUNTS: hot.sum(0)}

    def oracle(values: Values) -> dict[str, Tensor]:
        with torch.no_grad():
            seen = task.parts.load(values).eval()(values[FEATURES])
        y = values[LABELS]
        return {
            PROTOTYPE_SUMS: torch.zeros_like(seen.prototypes).index_add(0, y, seen.features),
            PROTOTYPE_COUNTS: torch.bincount(y, minlength=len(seen.known)).to(torch.float32),
        }

    shape = tuple(task.parts.buffers[PROTOTYPES].shape)
    outputs = (Output(PROTOTYPE_SUMS, "float32", shape, "sum"), Output(PROTOTYPE_COUNTS, "float32", shape[:1], "sum"))
    inputs = (task.features(None), task.labels(None), *task.parts.settings(training=False))
    return Definition("prototypes", inputs, outputs, {}, step, oracle)


def _hot(classes: Tensor, seen: Seen) -> Tensor:
    """Class numbers [batch] as rows of zeros and one 1, [batch, classes]."""
    return (classes.unsqueeze(1) == torch.arange(len(seen.known))).to(seen.features.dtype)


def _distance(seen: Seen, labels: Tensor) -> Tensor:
    """The mean of (f - p[y])^2 over features, [batch]; 0 where the class has no prototype."""
    hot = _hot(labels, seen)
    return (seen.features - hot @ seen.prototypes).square().mean(1) * (hot @ seen.known)


def _far(seen: Seen) -> Tensor:
    """By which class's prototype is nearest, [batch, classes]: |p|^2 - 2 f p; the greatest for classes without one."""
    far = seen.prototypes.square().sum(1) - 2 * seen.features @ seen.prototypes.transpose(0, 1)
    return torch.where(seen.known > 0, far, far.abs().amax(1, keepdim=True) + 1)
