"""What a device wants of dreams: its objective L, whose terms and their formulas are at the head of `dreams`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from edgefl.errors import LoweringError
from edgefl.manifest import Input, Output
from edgefl.names import ENTROPY, GRADIENT_SCALE, L2, STATISTICS, TOTAL_VARIATION
from edgefl_exporter.programs.observed import Observed, distance, norm, observed, torch_distance, torch_norm
from edgefl_exporter.programs.program import Values
from edgefl_exporter.programs.supervised import Supervised

# The settings that are factors of L's terms, with the defaults of the paper's code.
FACTORS = {ENTROPY: 1.0, STATISTICS: 10.0, TOTAL_VARIATION: 2.5e-5, L2: 3e-8}
# Times each gradient that is sent: float16 loses numbers below 6e-8.
SCALING = Input(GRADIENT_SCALE, "float32", (), "setting", 1.0)


class Objective:
    """L of a model, as terms without their factors: entropy, statistics, total variation, l2."""

    def __init__(self, task: Supervised) -> None:
        """Raises LoweringError for a model that cannot dream."""
        self.eyes: Observed = observed(task)
        self._logits = logits_of(task)
        factors = (Input(name, "float32", (), "setting", default) for name, default in FACTORS.items())
        self.settings = (*factors, *task.parts.settings(training=False))
        names = ("loss", *(f"{name}_term" for name in FACTORS))
        self.outputs = tuple(Output(name, "float32", (), "mean") for name in names)

    def differentiate(self, values: Values, x: Tensor) -> tuple[Tensor, Tensor]:
        """The terms [4], and the gradient of L by x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            terms = self.terms(values, x)
            (gradient,) = torch.autograd.grad((terms * factors_of(values)).sum(), x)
        return terms.detach(), gradient

    def terms(self, values: Values, x: Tensor) -> Tensor:
        """[4], in a form that can be traced."""
        look = self.eyes.look(values, x)
        logs = self._logits(look.output).log_softmax(1)
        entropy = -(logs.exp() * logs).sum(1).mean()
        return torch.stack([entropy, distance(look.found, look.wanted), _total_variation(x), norm(x)])

    def torch(self, values: Values, x: Tensor) -> Tensor:
        """The same terms by PyTorch's own means."""
        look = self.eyes.look_again(values, x)
        p = Categorical(logits=self._logits(look.output))
        entropy = p.entropy().mean()  # type: ignore[no-untyped-call]
        variation = sum((x.diff(dim=at).pow(2).sum() for at in (-1, -2) if _is_image(x)), x.new_zeros(())) / x.numel()
        return torch.stack([entropy, torch_distance(look.found, look.wanted), variation, torch_norm(x)])

    def report(self, terms: Tensor, values: Values) -> dict[str, Tensor]:
        """The metrics, by name."""
        each = {f"{name}_term": terms[i] for i, name in enumerate(FACTORS)}
        return {"loss": (terms * factors_of(values)).sum()} | each


def factors_of(values: Values) -> Tensor:
    return torch.stack([values[name] for name in FACTORS])


def _total_variation(x: Tensor) -> Tensor:
    if not _is_image(x):
        return torch.zeros(())
    down, right = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
    return ((down * down).sum() + (right * right).sum()) / x.numel()


def _is_image(x: Tensor) -> bool:
    """[batch, channels, height, width] or [batch, height, width]."""
    return x.dim() in (3, 4)


def logits_of(task: Supervised) -> Callable[[Any], Tensor]:
    """What a model returns -> logits [batch, classes]. Raises LoweringError for a model without."""
    kind, x = task.samples.kind, task.samples.example
    if kind.classes is None or kind.shape or "logits" not in task.loss.predictions(task.output_of_two):
        raise LoweringError(f"dreams need classes, which {task.loss.name} has not", hint="use cross_entropy")
    if x.dtype != torch.float32:
        raise LoweringError(f"the example input is {x.dtype}; a dream is float32, so that it has a gradient")
    return lambda output: task.loss.predictions(output)["logits"]
