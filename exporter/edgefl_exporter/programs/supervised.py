"""Programs of a model that learns from labelled examples: train, gradient, anchor, evaluate, predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from edgefl.errors import LoweringError, first_line
from edgefl.manifest import Input, Output
from edgefl.names import FEATURES, GRADIENT, LABELS
from edgefl_exporter.models.parts import DTYPES, Parts
from edgefl_exporter.programs.losses import Adjustable, Loss
from edgefl_exporter.programs.program import PRESENT, Definition, Values, following
from edgefl_exporter.programs.samples import Samples
from edgefl_exporter.programs.update import Update, anchor

LOSS = Output("loss", "float32", (), "mean")


@dataclass(frozen=True)
class Supervised:
    """A model, its loss and its update, from which each program is made.

    `batch`: the one batch size of the programs that train, whose short batches are padded; None for a dynamic one.
    """

    parts: Parts
    samples: Samples
    update: Update
    batch: int | None = None

    @property
    def loss(self) -> Loss:
        return self.samples.loss

    def features(self, batch: int | None) -> Input:
        """The examples as a program's input, `batch` of them or any number."""
        x = self.samples.example
        return Input(FEATURES, DTYPES[x.dtype], (batch or "batch", *x.shape[1:]), "features")

    def labels(self, batch: int | None) -> Input:
        """Their labels."""
        kind = self.samples.kind
        return Input(LABELS, kind.dtype, (batch or "batch", *kind.shape), "labels")

    def train(self) -> Definition:
        """One step of training: forward, backward and update. Loss and metrics are those before the step."""
        used = self.used

        def step(values: Values) -> dict[str, Tensor]:
            result, gradients, after = self._differentiate(values)
            examples = count_of(values)
            weights, state = self.update.step({n: values[n] for n in gradients}, gradients, values, examples)
            return result | {following(name): value for name, value in (weights | state | after).items()}

        def oracle(values: Values) -> dict[str, Tensor]:
            result, weights, after = self._backward(values)
            mine = {name: w for name, w in weights.items() if w.grad is not None}
            examples = int(count_of(values))
            state = self.update.torch(mine, values, examples)
            after = {n: w.detach() for n, w in mine.items()} | state | after
            return result | {following(name): after[name].detach() for name in writes}

        writes = {n: following(n) for n in (*used, *self.update.written(used), *self.changing)}
        inputs = (*self._inputs(), *self.update.settings, *self._settings(training=True))
        typical = self.update.optimizer.typical(used)
        return Definition("train", inputs, self._outputs(), writes, step, oracle, typical, self.batch)

    def gradient(self) -> Definition:
        """The gradient of the mean loss by each trained parameter, as an output; nothing of it is applied."""
        used = self.used

        def step(values: Values) -> dict[str, Tensor]:
            result, gradients, after = self._differentiate(values)
            return (
                result
                | {_gradient(name): g for name, g in gradients.items()}
                | {following(name): value for name, value in after.items()}
            )

        def oracle(values: Values) -> dict[str, Tensor]:
            result, weights, after = self._backward(values)
            found = {_gradient(name): w.grad for name, w in weights.items() if w.grad is not None}
            return result | found | {following(name): after[name] for name in after}

        outputs = tuple(Output(_gradient(name), "float32", tuple(w.shape), "mean") for name, w in used.items())
        writes = {name: following(name) for name in self.changing}
        found = (*self._outputs(), *outputs)
        inputs = (*self._inputs(), *self._settings(training=True))
        return Definition("gradient", inputs, found, writes, step, oracle, batch=self.batch)

    def anchor(self) -> Definition:
        """The parameters of now become what the proximal term pulls to."""
        used = self.used

        def step(values: Values) -> dict[str, Tensor]:
            return {following(anchor(name)): values[name].clone() for name in used}

        writes = {anchor(name): following(anchor(name)) for name in used}
        return Definition("anchor", (), (), writes, step, step)

    def evaluate(self) -> Definition:
        """Loss and metrics in evaluation mode; nothing changes."""

        def step(values: Values) -> dict[str, Tensor]:
            output, _ = self.parts.call(values, values[FEATURES], training=False)
            return self._measured(output, values, self._loss(values).each(output, values[LABELS]).mean())

        def oracle(values: Values) -> dict[str, Tensor]:
            with torch.no_grad():
                output = self.parts.load(values).eval()(values[FEATURES])
                cost = self._loss(values).torch(output, values[LABELS])
                return self._measured(output, values, cost) | self._slack(output)

        inputs = (self.features(None), self.labels(None), *self._settings(training=False))
        return Definition("evaluate", inputs, self._outputs(), {}, step, oracle)

    def predict(self) -> Definition:
        """What the model predicts, in evaluation mode."""

        def step(values: Values) -> dict[str, Tensor]:
            output, _ = self.parts.call(values, values[FEATURES], training=False)
            return self.loss.predictions(output)

        def oracle(values: Values) -> dict[str, Tensor]:
            with torch.no_grad():
                return self.loss.predictions(self.parts.load(values).eval()(values[FEATURES]))

        trial = self.loss.predictions(self.output_of_two)
        outputs = tuple(Output(n, "float32", ("batch", *value.shape[1:]), "concat") for n, value in trial.items())
        inputs = (self.features(None), *self.parts.settings(training=False))
        return Definition("predict", inputs, outputs, {}, step, oracle)

    def _differentiate(self, values: Values) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Loss and metrics, gradients, and the buffers afterwards, as functions that can be traced.

        A parameter that the loss does not depend on is not among them: torch.optim leaves it alone, decay too.
        """
        with torch.enable_grad():
            weights = {name: values[name].detach().requires_grad_() for name in self.used}
            output, buffers = self.parts.call({**values, **weights}, values[FEATURES], training=True)
            cost = _mean(self._loss(values).each(output, values[LABELS]), values)
            gradients = torch.autograd.grad(cost, list(weights.values()))
        after = {name: buffers[name] for name in self.changing}
        with torch.no_grad():
            result = self._measured(output, values, cost.detach())
        return result, dict(zip(weights, gradients, strict=True)), after

    def _backward(self, values: Values) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The same by PyTorch's own means, without the padding: results, weights with .grad, buffers afterwards."""
        count = int(count_of(values))
        real = {name: values[name][:count] for name in (FEATURES, LABELS)}
        module = self.parts.train_mode(self.parts.load(values))
        weights = {name: w for name, w in module.named_parameters() if name in self.parts.trained}
        output = module(real[FEATURES])
        cost = self._loss(values).torch(output, real[LABELS])
        cost.backward()  # type: ignore[no-untyped-call]
        buffers = dict(module.named_buffers())
        after = {name: buffers[name].detach().clone() for name in self.changing}
        with torch.no_grad():
            result = self._measured(output, real, cost.detach()) | self._slack(output)
        return result, dict(weights), after

    def _loss(self, values: Values) -> Loss:
        """The loss with the settings among the values."""
        return self.loss.at(values) if isinstance(self.loss, Adjustable) else self.loss

    def _settings(self, *, training: bool) -> tuple[Input, ...]:
        """The inputs that set something of the model or of the loss."""
        own = self.loss.settings if isinstance(self.loss, Adjustable) else ()
        return (*self.parts.settings(training=training), *own)

    def _measured(self, output: Any, values: Values, cost: Tensor) -> dict[str, Tensor]:
        """The loss and every metric of the batch, padding left out."""
        found = {"loss": cost}
        each = self.loss.measure(output, values[LABELS])
        for name, over_batches in self.loss.measures:
            found[name] = _mean(each[name], values) if over_batches == "mean" else _sum(each[name], values)
        return found

    def _slack(self, output: Any) -> dict[str, Tensor]:
        return {f"slack.{name}": value for name, value in self.loss.slack(output).items()}

    def _outputs(self) -> tuple[Output, ...]:
        return (LOSS, *(Output(name, "float32", (), over) for name, over in self.loss.measures))

    def _inputs(self) -> tuple[Input, ...]:
        inputs = self.features(self.batch), self.labels(self.batch)
        return inputs if self.batch is None else (*inputs, Input(PRESENT, "float32", (self.batch,), "present"))

    @cached_property
    def _trial(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """What one step of PyTorch touches: the trained parameters that the loss depends on, and the buffers that a
        forward pass changes."""
        generator = torch.Generator().manual_seed(0)
        rows, labels = self.samples.features(4, generator), self.samples.labels(4, generator)
        module = self.parts.train_mode(self.parts.load(self.parts.parameters | self.parts.buffers))
        before = {name: (b, b.clone()) for name, b in module.named_buffers() if name in self.parts.buffers}
        with torch.enable_grad():
            cost = self.loss.torch(module(rows), labels)
            weights = [dict(module.named_parameters())[name] for name in self.parts.trained]
            try:
                grads = torch.autograd.grad(cost, weights, allow_unused=True) if weights else ()
            except (RuntimeError, NotImplementedError) as error:
                raise LoweringError(
                    f"PyTorch cannot differentiate the model: {first_line(error)}",
                    hint="detach() what needs no gradient",
                ) from error
        after = dict(module.named_buffers())
        for name, (buffer, _) in before.items():
            if after[name] is not buffer:
                raise LoweringError(
                    f"the model puts a new tensor in place of its buffer {name!r}",
                    hint="change it in place: self.buffer.copy_(value)",
                )
        used = {n: self.parts.parameters[n] for n, g in zip(self.parts.trained, grads, strict=True) if g is not None}
        return used, tuple(name for name, (buffer, value) in before.items() if not torch.equal(buffer, value))

    @cached_property
    def output_of_two(self) -> Any:
        """What the model returns for two examples."""
        rows = torch.cat([self.samples.example] * 2)
        with torch.no_grad():
            return self.parts.load(self.parts.parameters | self.parts.buffers).eval()(rows)

    @property
    def used(self) -> dict[str, Tensor]:
        """The trained parameters that the loss depends on."""
        return self._trial[0]

    @property
    def changing(self) -> tuple[str, ...]:
        """The buffers that training changes."""
        return self._trial[1]


def _gradient(name: str) -> str:
    return f"{GRADIENT}{name}"


def count_of(values: Mapping[str, Tensor]) -> Tensor:
    """How many examples the batch has, padding not counted."""
    if PRESENT in values:
        return values[PRESENT].sum()
    x = values[FEATURES]
    return torch.ones_like(x if x.dim() == 1 else x.flatten(1).select(1, 0), dtype=torch.float32).sum()


def _sum(each: Tensor, values: Values) -> Tensor:
    """The sum of one number per example, padding left out."""
    return (each * values[PRESENT]).sum() if PRESENT in values else each.sum()


def _mean(each: Tensor, values: Values) -> Tensor:
    """The mean of one number per example, padding left out; a number for the whole batch as it is."""
    if PRESENT in values:
        return _sum(each, values) / values[PRESENT].sum()
    return each.mean()
