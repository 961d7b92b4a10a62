"""CoDream: devices with models of any architecture dream together, and learn from what they say of the dreams.

Singh et al., "CoDream: Exchanging Dreams Instead of Models for Federated Aggregation with Heterogeneous Models",
arXiv:2402.15968. Dreams X [batch, ...] are inputs of the model, normalised floats. A device's objective is

    L(X) = entropy * mean H(softmax f(X)) + statistics * R(X) + total_variation * TV(X) + l2 * |X|_2

with f the model in evaluation mode, H(p) = -sum p log p, R as in `edgefl_exporter.programs.observed`, and TV the sum of
squared differences of neighbours in each column and row, per value. TV is 0 for inputs that are no image: of one
dimension, or more than three. Only gradients of L by X and class probabilities leave a device, no weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from edgefl.manifest import Input, Output
from edgefl.names import (
    DREAM_CHANGE,
    DREAM_GRADIENT,
    FEATURES,
    GRADIENT_SCALE,
    PROBABILITIES,
    STEP_SIZE,
    STEPS,
)
from edgefl_exporter.lowering.loop import repeat
from edgefl_exporter.programs.objective import FACTORS, SCALING, Objective, factors_of, logits_of
from edgefl_exporter.programs.program import Definition, Values
from edgefl_exporter.programs.supervised import Supervised

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam


def dream(task: Supervised) -> Definition:
    """The gradient of L by the dreams, times the setting `gradient_scale`; nothing is written.

    Every term is of the whole batch, so a task takes all dreams in one.
    """
    objective = Objective(task)

    def step(values: Values) -> dict[str, Tensor]:
        terms, gradient = objective.differentiate(values, values[FEATURES])
        return {DREAM_GRADIENT: gradient * values[GRADIENT_SCALE]} | objective.report(terms, values)

    def oracle(values: Values) -> dict[str, Tensor]:
        x = values[FEATURES].clone().requires_grad_()
        terms = objective.torch(values, x)
        (terms @ factors_of(values)).backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return {DREAM_GRADIENT: x.grad * values[GRADIENT_SCALE]} | objective.report(terms.detach(), values)

    inputs = (task.features(None), *objective.settings, SCALING)
    outputs = (Output(DREAM_GRADIENT, *_like(task)), *objective.outputs)
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
        return {DREAM_CHANGE: x - after} | objective.report(terms, values)

    def oracle(values: Values) -> dict[str, Tensor]:
        x = values[FEATURES].clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=float(values[STEP_SIZE]), betas=BETAS, eps=EPS)
        first = torch.zeros(len(FACTORS))
        for turn in range(int(values[STEPS])):
            optimizer.zero_grad()
            terms = objective.torch(values, x)
            (terms @ factors_of(values)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            first = first if turn else terms.detach()
        return {DREAM_CHANGE: values[FEATURES] - x.detach()} | objective.report(first, values)

    own = (Input(STEPS, "int64", (), "setting", 5.0), Input(STEP_SIZE, "float32", (), "setting", 0.05))
    inputs = (task.features(None), *objective.settings, *own)
    outputs = (Output(DREAM_CHANGE, *_like(task)), *objective.outputs)
    brings = objective.eyes.state()
    return Definition("dream_steps", inputs, outputs, {}, step, oracle, brings=brings)


def label(task: Supervised) -> Definition:
    """The probability of each class, in evaluation mode."""
    logits = logits_of(task)

    def step(values: Values) -> dict[str, Tensor]:
        output, _ = task.parts.call(values, values[FEATURES], training=False)
        return {PROBABILITIES: logits(output).softmax(1)}

    def oracle(values: Values) -> dict[str, Tensor]:
        with torch.no_grad():
            return {PROBABILITIES: Categorical(logits=logits(task.parts.load(values).eval()(values[FEATURES]))).probs}

    outputs = (Output(PROBABILITIES, "float32", ("batch", task.samples.kind.classes or 0), "concat"),)
    inputs = (task.features(None), *task.parts.settings(training=False))
    return Definition("label", inputs, outputs, {}, step, oracle)


def _like(task: Supervised) -> tuple[Any, ...]:
    """dtype, shape and reduction of an output that is like the dreams."""
    return "float32", ("batch", *task.samples.example.shape[1:]), "concat"
