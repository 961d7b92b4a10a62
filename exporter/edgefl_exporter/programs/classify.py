"""train, evaluate and predict of a classifier: x [batch, ...], labels y [batch] -> loss and number correct."""

from __future__ import annotations

import torch
from torch import Tensor

from edgefl.bundle import Input, Output
from edgefl_exporter.losses import CrossEntropy
from edgefl_exporter.model import DTYPES, Parts
from edgefl_exporter.optimizers import Optimizer
from edgefl_exporter.programs.program import Definition, Values, following

LOSS = Output("loss", "float32", (), "mean")
CORRECT = Output("correct", "float32", (), "sum")
NEAR_TIE = 1e-3  # of the largest logit: closer than this, rounding may decide which class wins


def features(x: Tensor) -> Input:
    return Input("x", DTYPES[x.dtype], ("batch", *x.shape[1:]), "features")


def labels() -> Input:
    return Input("y", "int64", ("batch",), "labels")


def train(parts: Parts, x: Tensor, loss: CrossEntropy, optimizer: Optimizer) -> Definition:
    """One step of training: forward, backward and optimizer. Loss and correct are those before the step."""
    wanted = {name: parts.parameters[name] for name in parts.trained}
    moments = optimizer.moments(wanted)

    def step(values: Values) -> dict[str, Tensor]:
        with torch.enable_grad():
            weights = {name: values[name].detach().requires_grad_() for name in wanted}
            logits, buffers = parts.call({**values, **weights}, values["x"], training=True)
            assert isinstance(logits, Tensor)
            cost = loss.traced(logits, values["y"])
            # A parameter that the loss does not depend on has no gradient; torch.optim leaves it alone, decay too.
            grads = torch.autograd.grad(cost, list(weights.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(weights, grads, strict=True) if g is not None}
        used = {name: values[name] for name in gradients}
        next_weights, next_moments = optimizer.step(used, gradients, values, values["learning_rate"])
        after = next_weights | next_moments | buffers
        result = {"loss": cost.detach(), "correct": _correct(logits.detach(), values["y"])}
        return result | {following(name): value for name, value in after.items()}

    def oracle(values: Values) -> dict[str, Tensor]:
        module = parts.load(values).train()
        weights = {name: w for name, w in module.named_parameters() if name in wanted}
        own = optimizer.torch(weights, values, float(values["learning_rate"]))
        logits = module(values["x"])
        cost = loss.torch(logits, values["y"])
        cost.backward()  # type: ignore[no-untyped-call]
        own.step()
        tensors = weights | dict(module.named_buffers()) | optimizer.torch_moments(own, weights)
        after = {name: tensors[name].detach() for name in writes}
        result = {"loss": cost.detach(), "correct": _correct(logits.detach(), values["y"])}
        result["slack.correct"] = _undecided(logits.detach())
        return result | {following(name): value for name, value in after.items()}

    with torch.no_grad():
        unused = _without_gradient(parts, x, loss)
    written = [*(n for n in wanted if n not in unused), *moments, *parts.buffers]
    writes = {n: following(n) for n in written if n.removeprefix("momentum.") not in unused}
    rate = Input("learning_rate", "float32", (), "setting", optimizer.learning_rate)
    return Definition("train", (features(x), labels(), rate), (LOSS, CORRECT), writes, step, oracle)


def evaluate(parts: Parts, x: Tensor, loss: CrossEntropy) -> Definition:
    """Loss and correct in evaluation mode; nothing changes."""

    def step(values: Values) -> dict[str, Tensor]:
        logits, _ = parts.call(values, values["x"], training=False)
        assert isinstance(logits, Tensor)
        return {"loss": loss.traced(logits, values["y"]), "correct": _correct(logits, values["y"])}

    def oracle(values: Values) -> dict[str, Tensor]:
        with torch.no_grad():
            logits = parts.load(values).eval()(values["x"])
            cost = loss.torch(logits, values["y"])
        return {
            "loss": cost,
            "correct": _correct(logits, values["y"]),
            "slack.correct": _undecided(logits),
        }

    return Definition("evaluate", (features(x), labels()), (LOSS, CORRECT), {}, step, oracle)


def predict(parts: Parts, x: Tensor, classes: int) -> Definition:
    """Logits in evaluation mode."""

    def step(values: Values) -> dict[str, Tensor]:
        logits, _ = parts.call(values, values["x"], training=False)
        assert isinstance(logits, Tensor)
        return {"logits": logits}

    def oracle(values: Values) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"logits": parts.load(values).eval()(values["x"])}

    output = Output("logits", "float32", ("batch", classes), "concat")
    return Definition("predict", (features(x),), (output,), {}, step, oracle)


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(1) == y).sum().to(torch.float32)


def _undecided(logits: Tensor) -> Tensor:
    """How many examples have two best classes that rounding could swap."""
    if logits.shape[1] < 2:
        return torch.tensor(0.0)
    best = logits.topk(2, dim=1).values
    return ((best[:, 0] - best[:, 1]) <= NEAR_TIE * logits.abs().amax(1).clamp(min=1e-3)).sum().to(torch.float32)


def _without_gradient(parts: Parts, x: Tensor, loss: CrossEntropy) -> set[str]:
    """Trained parameters that the loss does not depend on."""
    with torch.enable_grad():
        module = parts.load(parts.parameters | parts.buffers).train()
        rows = torch.cat([x] * 2)
        cost = loss.torch(module(rows), torch.zeros(len(rows), dtype=torch.int64))
        weights = dict(module.named_parameters())
        grads = torch.autograd.grad(cost, [weights[n] for n in parts.trained], allow_unused=True)
    return {name for name, g in zip(parts.trained, grads, strict=True) if g is None}
