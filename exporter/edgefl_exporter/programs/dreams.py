"""CoDream: devices with models of any architecture dream together, and learn from what they say of the dreams.

Singh et al., "CoDream: Exchanging Dreams Instead of Models for Federated Aggregation with Heterogeneous Models",
arXiv:2402.15968. Dreams X [batch, ...] are inputs of the model, normalised floats. A device's objective is

    L(X) = entropy * mean H(softmax f(X)) + statistics * R(X) + total_variation * TV(X) + l2 * |X|_2

with f the model in evaluation mode, H(p) = -sum p log p, R as in `edgefl_exporter.programs.observed`, and TV the sum of
squared differences of neighbours in each column and row, per value. TV is 0 for inputs that are no image: of one
dimension, or more than three. Only gradients of L by X and class probabilities leave a device, no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from edgefl.bundle import Bundle, Input, Normalisation, Output
from edgefl.errors import InputError, LoweringError
from edgefl_exporter.export import PROGRAMS, export
from edgefl_exporter.lowering.loop import repeat
from edgefl_exporter.programs.distillation import distill
from edgefl_exporter.programs.likeness import DREAMS, likeness
from edgefl_exporter.programs.observed import (
    Look,
    Observed,
    distance,
    norm,
    observed,
    statistics,
    torch_distance,
    torch_norm,
)
from edgefl_exporter.programs.program import FEATURES, Definition, Values
from edgefl_exporter.programs.supervised import Supervised

METHOD = "codream"
# The settings that are factors of L's terms, with the defaults of the paper's code.
FACTORS = {"entropy": 1.0, "statistics": 10.0, "total_variation": 2.5e-5, "l2": 3e-8}
SCALE, STEPS, STEP_SIZE = "gradient_scale", "steps", "step_size"
GRADIENT, CHANGE, PROBABILITIES = "dream_gradient", "dream_change", "probabilities"
BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam


def export_dreams(
    model: nn.Module,
    example_input: Tensor,
    *,
    out: Path,
    name: str,
    dreams: int = 64,
    programs: Sequence[str] = PROGRAMS,
    normalisation: Normalisation = Normalisation(),  # noqa: B008  (frozen)
    **options: Any,
) -> Bundle:
    """Export what a device of CoDream needs. `dreams`: how many the program `likeness` compares with own images.

    Options as of `export`, which says what is raised; LoweringError also for a model that is no classifier of float32
    inputs, or has no layer to observe.
    """
    if dreams < 1:
        raise InputError(f"{dreams} dreams; expected at least 1")
    return export(
        model,
        example_input,
        out=out,
        name=name,
        programs=programs,
        own_programs=(
            statistics,
            dream,
            dream_steps,
            label,
            distill,
            partial(likeness, dreams=dreams, normalisation=normalisation),
        ),
        private=("*",),
        announced=(DREAMS,),
        method=METHOD,
        normalisation=normalisation,
        **options,
    )


def dream(task: Supervised) -> Definition:
    """The gradient of L by the dreams, times the setting `gradient_scale`; nothing is written.

    Every term is of the whole batch, so a task takes all dreams in one.
    """
    objective = Objective(task)

    def step(values: Values) -> dict[str, Tensor]:
        terms, gradient = objective.differentiate(values, values[FEATURES])
        return {GRADIENT: gradient * values[SCALE]} | objective.report(terms, values)

    def oracle(values: Values) -> dict[str, Tensor]:
        x = values[FEATURES].clone().requires_grad_()
        terms = objective.torch(values, x)
        (terms @ _factors(values)).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return {GRADIENT: x.grad * values[SCALE]} | objective.report(terms.detach(), values)

    inputs = (*objective.inputs, Input(SCALE, "float32", (), "setting", 1.0))
    outputs = (Output(GRADIENT, *_like(task)), *objective.outputs)
    return Definition("dream", inputs, outputs, {}, step, oracle, brings=objective.eyes.state())


def dream_steps(task: Supervised) -> Definition:
    """X - X', where X' is what `steps` steps of Adam with `step_size` make of the dreams X, from moments of zero.

    That is the pseudo-gradient of federated optimisation over data (the paper's section 4.2). Metrics are X's.
    """
    objective = Objective(task)

    def step(values: Values) -> dict[str, Tensor]:
        def body(states: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
            x, mean, square, done, first = states
            terms, g = objective.differentiate(values, x)
            done = done + 1
            # 1 - beta^t in float64: near t = 1 float32 would lose five digits of 1 - 0.999.
            unbias, unbias_square = ((1 - beta ** done.to(torch.float64)).to(torch.float32) for beta in BETAS)
            mean = BETAS[0] * mean + (1 - BETAS[0]) * g
            square = BETAS[1] * square + (1 - BETAS[1]) * (g * g)
            x = x - (values[STEP_SIZE] / unbias) * mean / (square.sqrt() / unbias_square.sqrt() + EPS)
            return (x, mean, square, done, torch.where(done == 1, terms, first)), done < values[STEPS]

        x = values[FEATURES]
        start = (x, torch.zeros_like(x), torch.zeros_like(x), torch.tensor(0), torch.zeros(len(FACTORS)))
        after, _, _, _, terms = repeat(body, start, values[STEPS])
        return {CHANGE: x - after} | objective.report(terms, values)

    def oracle(values: Values) -> dict[str, Tensor]:
        x = values[FEATURES].clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=float(values[STEP_SIZE]), betas=BETAS, eps=EPS)
        first = torch.zeros(len(FACTORS))
        for turn in range(int(values[STEPS])):
            optimizer.zero_grad()
            terms = objective.torch(values, x)
            (terms @ _factors(values)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            first = first if turn else terms.detach()
        return {CHANGE: values[FEATURES] - x.detach()} | objective.report(first, values)

    settings = (Input(STEPS, "int64", (), "setting", 5.0), Input(STEP_SIZE, "float32", (), "setting", 0.05))
    outputs = (Output(CHANGE, *_like(task)), *objective.outputs)
    brings = objective.eyes.state()
    return Definition("dream_steps", (*objective.inputs, *settings), outputs, {}, step, oracle, brings=brings)


def label(task: Supervised) -> Definition:
    """The probability of each class, in evaluation mode."""
    logits = _logits_of(task)

    def step(values: Values) -> dict[str, Tensor]:
        output, _ = task.parts.call(values, values[FEATURES], training=False)
        return {PROBABILITIES: logits(output).softmax(1)}

    def oracle(values: Values) -> dict[str, Tensor]:
        with torch.no_grad():
            return {PROBABILITIES: Categorical(logits=logits(task.parts.load(values).eval()(values[FEATURES]))).probs}

    outputs = (Output(PROBABILITIES, "float32", ("batch", task.samples.kind.classes or 0), "concat"),)
    inputs = (task.features(None), *task.parts.settings(training=False))
    return Definition("label", inputs, outputs, {}, step, oracle)


class Objective:
    """L of a model, as terms without their factors: entropy, statistics, total variation, l2."""

    def __init__(self, task: Supervised) -> None:
        """Raises LoweringError for a model that cannot dream."""
        self.eyes: Observed = observed(task)
        self._logits = _logits_of(task)
        settings = (Input(name, "float32", (), "setting", default) for name, default in FACTORS.items())
        self.inputs = (task.features(None), *settings, *task.parts.settings(training=False))
        names = ("loss", *(f"{name}_term" for name in FACTORS))
        self.outputs = tuple(Output(name, "float32", (), "mean") for name in names)

    def differentiate(self, values: Values, x: Tensor) -> tuple[Tensor, Tensor]:
        """The terms [4], and the gradient of L by x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            terms = self.terms(self.eyes.look(values, x), x)
            (gradient,) = torch.autograd.grad((terms * _factors(values)).sum(), x)
        return terms.detach(), gradient

    def terms(self, look: Look, x: Tensor) -> Tensor:
        """[4], in a form that can be traced."""
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
        return {"loss": (terms * _factors(values)).sum()} | each


def _factors(values: Values) -> Tensor:
    return torch.stack([values[name] for name in FACTORS])


def _total_variation(x: Tensor) -> Tensor:
    if not _is_image(x):
        return torch.zeros(())
    down, right = x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]
    return ((down * down).sum() + (right * right).sum()) / x.numel()


def _is_image(x: Tensor) -> bool:
    """[batch, channels, height, width] or [batch, height, width]."""
    return x.dim() in (3, 4)


def _like(task: Supervised) -> tuple[Any, ...]:
    """dtype, shape and reduction of an output that is like the dreams."""
    return "float32", ("batch", *task.samples.example.shape[1:]), "concat"


def _logits_of(task: Supervised) -> Callable[[Any], Tensor]:
    """What a model returns -> logits [batch, classes]. Raises LoweringError for a model without."""
    kind, x = task.samples.kind, task.samples.example
    if kind.classes is None or kind.shape or "logits" not in task.loss.predictions(task.output_of_two):
        raise LoweringError(f"dreams need classes, which {task.loss.name} has not", hint="use cross_entropy")
    if x.dtype != torch.float32:
        raise LoweringError(f"the example input is {x.dtype}; a dream is float32, so that it has a gradient")
    return lambda output: task.loss.predictions(output)["logits"]
