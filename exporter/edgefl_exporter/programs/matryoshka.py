"""FedMRL: a small shared model and a local one of any architecture, nested in one representation.

Yi, Yu, Ren, Wang, Liu, Li, "Federated Model Heterogeneous Matryoshka Representation Learning", NeurIPS 2024,
arXiv:2406.00488. With features r of each model before its last Linear, [batch, d1] and [batch, d2]:

    m = projector(concat(r_small, r_local))      one Linear with bias, d1 + d2 -> d2
    inner = small.head(m[:, :d1])                the prefix of m: the inner doll
    outer = local.head(m)                        the outer doll, which a device predicts with
    loss = inner_weight * L(inner, y) + outer_weight * L(outer, y)

Only `small.*` travels; `local.*` and `projector.*` stay on their device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from edgefl.errors import LoweringError
from edgefl_exporter.models.parts import declare_setting
from edgefl_exporter.programs.losses import Labels, Loss
from edgefl_exporter.programs.split import Split


class Dolls(NamedTuple):
    """What a Matryoshka returns: both heads' outputs [batch, ...] and how much each one's loss counts."""

    outer: Tensor
    inner: Tensor
    outer_weight: Tensor
    inner_weight: Tensor


class Matryoshka(nn.Module):
    """Two models as one, see above. The settings `inner_weight` and `outer_weight` are 1 by default."""

    def __init__(self, small: nn.Module, local: nn.Module, example_input: Tensor) -> None:
        """Raises LoweringError for models that cannot be split at a last Linear, or do not fit together."""
        super().__init__()
        self.small = Split(small, example_input, "the small model")
        self.local = Split(local, example_input, "the local model")
        d1, d2 = self.small.head.in_features, self.local.head.in_features
        if d1 > d2:
            raise LoweringError(
                f"the small model has {d1} features before its last layer, the local one only {d2}",
                hint="make the small model narrower: its features are a prefix of the local model's",
            )
        if self.small.head.out_features != self.local.head.out_features:
            raise LoweringError(
                f"the small model has {self.small.head.out_features} outputs, the local one "
                f"{self.local.head.out_features}; both must know the same classes"
            )
        self.projector = nn.Linear(d1 + d2, d2)
        declare_setting(self, "inner_weight", 1.0)
        declare_setting(self, "outer_weight", 1.0)

    def forward(self, x: Tensor) -> Dolls:
        features = torch.cat([self.small.extractor(x), self.local.extractor(x)], 1)
        m = self.projector(features)  # [batch, d2]
        inner = self.small.head(m[:, : self.small.head.in_features])
        return Dolls(self.local.head(m), inner, self.get_buffer("outer_weight"), self.get_buffer("inner_weight"))

    def read_by(self, loss: Loss) -> Loss:
        return BothDolls(loss)


@dataclass(frozen=True)
class BothDolls:
    """A loss over both heads, weighted. What is measured of the outer one has its own name, of the inner one `inner_`
    before it; `loss` is the weighted sum."""

    base: Loss

    @property
    def name(self) -> str:
        return f"matryoshka {self.base.name}"

    @property
    def measures(self) -> tuple[tuple[str, Literal["mean", "sum"]], ...]:
        both = (*self.base.measures, ("outer_loss", "mean"))
        return (*both, *((_inner(name), over) for name, over in self.base.measures), ("inner_loss", "mean"))

    def labels(self, output: object) -> Labels:
        assert isinstance(output, Dolls)
        return self.base.labels(output.outer)

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        return self.base.sample(labels, count, generator)

    def predictions(self, output: Dolls) -> dict[str, Tensor]:
        inner = self.base.predictions(output.inner)
        return self.base.predictions(output.outer) | {_inner(name): value for name, value in inner.items()}

    def each(self, output: Dolls, labels: Tensor) -> Tensor:
        outer, inner = self.base.each(output.outer, labels), self.base.each(output.inner, labels)
        return output.outer_weight * outer + output.inner_weight * inner

    def torch(self, output: Dolls, labels: Tensor) -> Tensor:
        outer, inner = self.base.torch(output.outer, labels), self.base.torch(output.inner, labels)
        return output.outer_weight * outer + output.inner_weight * inner

    def measure(self, output: Dolls, labels: Tensor) -> dict[str, Tensor]:
        found = self.base.measure(output.outer, labels) | {"outer_loss": self.base.each(output.outer, labels)}
        inner = self.base.measure(output.inner, labels) | {"loss": self.base.each(output.inner, labels)}
        return found | {_inner(name): value for name, value in inner.items()}

    def slack(self, output: Dolls) -> dict[str, Tensor]:
        inner = self.base.slack(output.inner)
        return self.base.slack(output.outer) | {_inner(name): value for name, value in inner.items()}


def _inner(name: str) -> str:
    return f"inner_{name}"
