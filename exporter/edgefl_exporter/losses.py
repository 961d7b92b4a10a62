"""Losses: what a program minimises, what it counts, and what PyTorch's own says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgefl.errors import LoweringError


@dataclass(frozen=True)
class CrossEntropy:
    """Mean over the batch of -log softmax(logits)[label]; logits are [batch, classes], labels int64 in 0..classes-1."""

    name: str = "cross_entropy"

    def check(self, output: object) -> int:
        """The number of classes. Raises LoweringError unless `output` is [batch, classes] of float32."""
        if not isinstance(output, Tensor):
            raise LoweringError(
                f"the model returns {type(output).__name__}; cross_entropy needs one tensor of logits [batch, classes]",
                hint="wrap the model in a module whose forward returns only the logits",
            )
        if output.dim() != 2 or output.dtype != torch.float32:
            raise LoweringError(
                f"the model returns {output.dtype} {list(output.shape)}; "
                "cross_entropy needs float32 logits [batch, classes]",
                hint="end the model with Flatten and Linear",
            )
        return output.shape[1]

    def traced(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The form that is lowered: float one-hot labels, so neither Gather nor Scatter is needed."""
        hot = (labels.unsqueeze(1) == torch.arange(logits.shape[1])).to(logits.dtype)  # [batch, classes]
        return _SoftCrossEntropy.apply(logits, hot)  # type: ignore[no-any-return, no-untyped-call]

    def torch(self, logits: Tensor, labels: Tensor) -> Tensor:
        """PyTorch's own, which the lowered form is proven against."""
        return F.cross_entropy(logits, labels)


class _SoftCrossEntropy(torch.autograd.Function):
    """Mean of -sum(target * log softmax(logits)) with the gradient written out: (softmax - target) / batch.

    Autograd's way through log_softmax needs four more operators for the same numbers (rows of target sum to 1).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        logs = F.log_softmax(logits, 1)
        ctx.save_for_backward(logs, target)
        return -(logs * target).sum(1).mean()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        logs, target = ctx.saved_tensors
        return (logs.exp() - target) * (g / logs.shape[0]), None


LOSSES = {"cross_entropy": CrossEntropy()}
