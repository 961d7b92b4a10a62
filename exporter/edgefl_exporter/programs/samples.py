"""Random examples of the kind a model takes: what programs are traced and proven with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgefl_exporter.programs.losses import Labels, Loss


@dataclass(frozen=True)
class Samples:
    """Features like `example` [batch, ...] and labels that the loss takes.

    `tokens`: features that are integers are 0..tokens-1, a range that every embedding of the model knows.
    """

    example: Tensor
    loss: Loss
    kind: Labels
    tokens: int

    def features(self, count: int, generator: torch.Generator) -> Tensor:
        shape = (count, *self.example.shape[1:])
        if self.example.is_floating_point():
            return torch.randn(shape, generator=generator)
        return torch.randint(0, self.tokens, shape, generator=generator).to(self.example.dtype)

    def labels(self, count: int, generator: torch.Generator) -> Tensor:
        return self.loss.sample(self.kind, count, generator)


def samples_of(module: nn.Module, example: Tensor, loss: Loss, kind: Labels) -> Samples:
    """`Samples` for a model: integers stay below the size of its smallest embedding, and are 0 or 1 without one."""
    sizes = [m.num_embeddings for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return Samples(example, loss, kind, min(sizes, default=2))
