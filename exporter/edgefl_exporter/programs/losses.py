"""Losses: what a program minimises, what it counts beside it, and what PyTorch's own says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from edgefl.data_contract import Dtype
from edgefl.errors import InputError, LoweringError, said
from edgefl.manifest import Input

NEAR_TIE = 1e-3  # of the largest logit: closer than this, rounding may decide which class wins


@dataclass(frozen=True)
class Labels:
    """What the label of one example is: its shape without the batch dimension, its dtype, and how many classes there
    are where labels are class numbers."""

    shape: tuple[int, ...]
    dtype: Dtype
    classes: int | None = None


class Loss(Protocol):
    """A loss over what a model returns for a batch, mostly one tensor [batch, ...], and labels [batch, ...].

    A model may return more than one tensor where its loss can read that (see `Structured`): so `output` is Any.
    """

    @property
    def name(self) -> str: ...

    @property
    def measures(self) -> tuple[tuple[str, Literal["mean", "sum"]], ...]:
        """What else is counted: the name of each metric and how it is taken over batches."""
        ...

    def labels(self, output: object) -> Labels:
        """What labels this loss takes for such an output. Raises LoweringError for an output it cannot take."""
        ...

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        """Random labels [count, ...] for a proof."""
        ...

    def predictions(self, output: Any) -> dict[str, Tensor]:
        """What somebody who asks for a prediction gets: name -> [batch, ...]."""
        ...

    def each(self, output: Any, labels: Tensor) -> Tensor:
        """The form that is lowered: the loss of each example, [batch], or of the batch where there is only that, []."""
        ...

    def torch(self, output: Any, labels: Tensor) -> Tensor:
        """PyTorch's own mean over the batch, which the lowered form is proven against."""
        ...

    def measure(self, output: Any, labels: Tensor) -> dict[str, Tensor]:
        """The metrics of each example, [batch], in the order of `measures`."""
        ...

    def slack(self, output: Any) -> dict[str, Tensor]:
        """Metric -> how much rounding may change its sum over this batch, where examples are undecided."""
        ...


@runtime_checkable
class Structured(Protocol):
    """A module whose forward returns more than one tensor of predictions, and which knows how a loss reads that."""

    def read_by(self, loss: Loss) -> Loss:
        """A loss over everything that forward returns, made of a loss over predictions. Raises LoweringError for one
        that does not suit."""
        ...


@runtime_checkable
class Adjustable(Protocol):
    """A loss with settings of its own, which a run can change: a temperature."""

    @property
    def settings(self) -> tuple[Input, ...]:
        """The inputs of a program that set them."""
        ...

    def at(self, values: Mapping[str, Tensor]) -> Loss:
        """The loss with the settings that `values` holds."""
        ...


class _OneTensor:
    """A loss of a model that returns one tensor, called `output`."""

    output: str

    def predictions(self, output: Tensor) -> dict[str, Tensor]:
        return {self.output: output}


@dataclass(frozen=True)
class CrossEntropy(_OneTensor):
    """-log softmax(logits)[label]: logits [batch, classes, *places], labels int64 [batch, *places] in 0..classes-1.

    With places (a segmentation) the mean over them. `label_smoothing` as torch's: that part of each label's
    probability is spread evenly over all classes.
    """

    label_smoothing: float = 0.0
    name: str = "cross_entropy"
    output: str = "logits"
    measures: tuple[tuple[str, Literal["mean", "sum"]], ...] = (("correct", "sum"),)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label smoothing is {self.label_smoothing}; expected 0 or more, less than 1")

    def labels(self, output: object) -> Labels:
        shape = _output(output, self.name, "logits [batch, classes]", least=2)
        return Labels(shape[1:], "int64", shape[0])

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, labels.classes or 1, (count, *labels.shape), generator=generator)

    def each(self, output: Tensor, labels: Tensor) -> Tensor:
        """Float one-hot labels, so neither Gather nor Scatter is needed."""
        hot = _one_hot(labels, output.shape[1], axis=1).to(output.dtype)  # [batch, classes, *places]
        if self.label_smoothing:
            hot = hot * (1 - self.label_smoothing) + self.label_smoothing / output.shape[1]
        return _over_places(_SoftCrossEntropy.apply(output, hot))  # type: ignore[no-untyped-call]

    def torch(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels, label_smoothing=self.label_smoothing)

    def measure(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """With places: the part of an example's places that is right."""
        return {"correct": _over_places((output.argmax(1) == labels).to(torch.float32))}

    def slack(self, output: Tensor) -> dict[str, Tensor]:
        return {"correct": _over_places(_near_tie(output).to(torch.float32)).sum()}


@dataclass(frozen=True)
class SoftCrossEntropy(_OneTensor):
    """-sum(label * log softmax(logits)): logits [batch, classes], labels float32 [batch, classes].

    Labels are probabilities; a row that sums to less counts less, as in PyTorch.

    An example is correct when the classes of the greatest logit and the greatest label agree.
    """

    name: str = "soft_cross_entropy"
    output: str = "logits"
    measures: tuple[tuple[str, Literal["mean", "sum"]], ...] = (("correct", "sum"),)

    def labels(self, output: object) -> Labels:
        shape = _output(output, self.name, "logits [batch, classes]", least=2, most=2)
        return Labels(shape, "float32")

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        rows = torch.randn(count, *labels.shape, generator=generator).softmax(1)
        return rows * torch.rand(count, 1, generator=generator)

    def each(self, output: Tensor, labels: Tensor) -> Tensor:
        return _SoftCrossEntropy.apply(output, labels, 1, False)  # type: ignore[no-any-return, no-untyped-call]

    def torch(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels)

    def measure(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"correct": (output.argmax(1) == labels.argmax(1)).to(torch.float32)}

    def slack(self, output: Tensor) -> dict[str, Tensor]:
        return {"correct": _near_tie(output).to(torch.float32).sum()}


@dataclass(frozen=True)
class NextToken(_OneTensor):
    """Cross entropy of each position: logits [batch, time, classes], labels int64 [batch, time], the mean over time."""

    name: str = "next_token"
    output: str = "logits"
    measures: tuple[tuple[str, Literal["mean", "sum"]], ...] = (("correct", "sum"),)

    def labels(self, output: object) -> Labels:
        shape = _output(output, self.name, "logits [batch, time, classes]", least=3, most=3)
        return Labels(shape[:1], "int64", shape[1])

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, labels.classes or 1, (count, *labels.shape), generator=generator)

    def each(self, output: Tensor, labels: Tensor) -> Tensor:
        hot = _one_hot(labels, output.shape[2], axis=2).to(output.dtype)
        return _over_places(_SoftCrossEntropy.apply(output, hot, 2))  # type: ignore[no-untyped-call]

    def torch(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), labels.flatten())

    def measure(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The part of an example's tokens that is right."""
        return {"correct": _over_places((output.argmax(2) == labels).to(torch.float32))}

    def slack(self, output: Tensor) -> dict[str, Tensor]:
        return {"correct": _over_places(_near_tie(output, axis=2).to(torch.float32)).sum()}


@dataclass(frozen=True)
class BinaryCrossEntropy(_OneTensor):
    """Of logits [batch, ...] and labels float32 of the same shape, each 0..1: several labels for one example.

    The mean over an example's labels; correct is the part of them that is on the right side of 0.5.
    """

    name: str = "binary_cross_entropy"
    output: str = "logits"
    measures: tuple[tuple[str, Literal["mean", "sum"]], ...] = (("correct", "sum"),)

    def labels(self, output: object) -> Labels:
        return Labels(_output(output, self.name, "logits [batch, ...]"), "float32")

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 2, (count, *labels.shape), generator=generator).to(torch.float32)

    def each(self, output: Tensor, labels: Tensor) -> Tensor:
        return _over_places(_BinaryCrossEntropy.apply(output, labels))  # type: ignore[no-untyped-call]

    def torch(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, labels)

    def measure(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"correct": _over_places(((output > 0) == (labels > 0.5)).to(torch.float32))}

    def slack(self, output: Tensor) -> dict[str, Tensor]:
        near = output.abs() <= NEAR_TIE * output.abs().amax().clamp(min=NEAR_TIE)
        return {"correct": _over_places(near.to(torch.float32)).sum()}


@dataclass(frozen=True)
class Regression(_OneTensor):
    """Of outputs [batch, ...] and labels float32 of the same shape, the mean over an example's numbers.

    "mse" is the squared error; "huber" the squared error / 2 up to `delta`, linear beyond (Huber 1964).
    """

    name: Literal["mse", "huber"] = "mse"
    delta: float = 1.0
    output: str = "prediction"
    measures: tuple[tuple[str, Literal["mean", "sum"]], ...] = (("absolute_error", "mean"),)

    def labels(self, output: object) -> Labels:
        return Labels(_output(output, self.name, "[batch, ...]"), "float32")

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, *labels.shape, generator=generator)

    def each(self, output: Tensor, labels: Tensor) -> Tensor:
        error = output - labels
        if self.name == "mse":
            return _over_places(error * error)
        inside = error.clamp(-self.delta, self.delta)  # the whole error where it is small
        return _over_places(inside * (error - 0.5 * inside))

    def torch(self, output: Tensor, labels: Tensor) -> Tensor:
        if self.name == "mse":
            return F.mse_loss(output, labels)
        return F.huber_loss(output, labels, delta=self.delta)

    def measure(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"absolute_error": _over_places((output - labels).abs())}

    def slack(self, output: Tensor) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class OwnLoss(_OneTensor):
    """Somebody's function (output, labels) -> the loss of each example [batch], or the mean over the batch [].

    `example` is a batch of labels: it fixes their shape and dtype, and random labels are drawn from its values.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    example: Tensor
    name: str = "own"
    output: str = "output"
    measures: tuple[tuple[str, Literal["mean", "sum"]], ...] = ()

    def labels(self, output: object) -> Labels:
        dtypes: dict[torch.dtype, Dtype] = {torch.float32: "float32", torch.int64: "int64"}
        if self.example.dim() < 1 or self.example.dtype not in dtypes:
            raise LoweringError(
                f"the example labels are {self.example.dtype} {list(self.example.shape)}; "
                "expected float32 or int64 [batch, ...]"
            )
        if not isinstance(output, Tensor):
            raise LoweringError(
                f"the model returns {type(output).__name__}; a loss needs one tensor",
                hint="wrap the model in a module whose forward returns one tensor",
            )
        rows = self.example[:1].expand(len(output), *self.example.shape[1:])
        try:
            value = self.function(output, rows)
        except Exception as error:
            raise LoweringError(
                f"the loss fails on an output {list(output.shape)} and labels {list(rows.shape)}: {said(error)}"
            ) from error
        if not isinstance(value, Tensor) or tuple(value.shape) not in ((), (len(output),)):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise LoweringError(f"the loss returns {got}; expected one number, or one for each example [batch]")
        return Labels(tuple(self.example.shape[1:]), dtypes[self.example.dtype])

    def sample(self, labels: Labels, count: int, generator: torch.Generator) -> Tensor:
        values = self.example.flatten()
        drawn = torch.randint(0, len(values), (count, *labels.shape), generator=generator)
        return values[drawn]

    def each(self, output: Tensor, labels: Tensor) -> Tensor:
        return self.function(output, labels)

    def torch(self, output: Tensor, labels: Tensor) -> Tensor:
        return self.function(output, labels).mean()

    def measure(self, output: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {}

    def slack(self, output: Tensor) -> dict[str, Tensor]:
        return {}


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        CrossEntropy(),
        SoftCrossEntropy(),
        NextToken(),
        BinaryCrossEntropy(),
        Regression("mse"),
        Regression("huber"),
    )
}


class _SoftCrossEntropy(torch.autograd.Function):
    """-sum(target * log softmax(logits)) over the axis of classes, with the gradient written out: softmax - target.

    Autograd's way through log_softmax needs four more operators for the same numbers. `whole`: target sums to 1.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, axis: int = 1, whole: bool = True) -> Tensor:
        logs = F.log_softmax(logits, axis)
        ctx.save_for_backward(logs, target)
        ctx.axis, ctx.whole = axis, whole
        return -(logs * target).sum(axis)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        logs, target = ctx.saved_tensors
        predicted = logs.exp() if ctx.whole else logs.exp() * target.sum(ctx.axis, keepdim=True)
        return (predicted - target) * g.unsqueeze(ctx.axis), None, None, None


class _BinaryCrossEntropy(torch.autograd.Function):
    """max(x, 0) - x y + log(1 + exp(-|x|)), which does not overflow, with the gradient sigmoid(x) - y.

    Autograd would add the slopes of max and |x| at 0, which PyTorch takes to be 1 and 0: 1 - y instead of 0.5 - y.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        return logits.clamp(min=0) - logits * target + torch.log1p(torch.exp(-logits.abs()))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        logits, target = ctx.saved_tensors
        return (logits.sigmoid() - target) * g, None


def _one_hot(labels: Tensor, classes: int, axis: int) -> Tensor:
    """Whether each class is the label; the classes are the dimension `axis` of the result."""
    numbers = torch.arange(classes).reshape(-1, *[1] * (labels.dim() - axis))
    return labels.unsqueeze(axis) == numbers


def _over_places(values: Tensor) -> Tensor:
    """[batch, ...] -> the mean of each example, [batch]."""
    return values if values.dim() == 1 else values.flatten(1).mean(1)


def _near_tie(logits: Tensor, axis: int = 1) -> Tensor:
    """Where two best classes are so close that rounding could swap them: logits without the axis of classes."""
    if logits.shape[axis] < 2:
        return torch.zeros_like(logits.select(axis, 0), dtype=torch.bool)
    best = logits.topk(2, dim=axis).values
    gap = best.select(axis, 0) - best.select(axis, 1)
    return gap <= NEAR_TIE * logits.abs().amax(axis).clamp(min=1e-3)


def _output(output: object, loss: str, wanted: str, *, least: int = 1, most: int | None = None) -> tuple[int, ...]:
    """The shape of one example's output. Raises LoweringError unless it is float32 with a suitable rank."""
    if not isinstance(output, Tensor):
        raise LoweringError(
            f"the model returns {type(output).__name__}; {loss} needs one tensor, {wanted}",
            hint="wrap the model in a module whose forward returns only that tensor",
        )
    if output.dim() < least or (most is not None and output.dim() > most) or output.dtype != torch.float32:
        hint = "end the model with Flatten and Linear" if loss == "cross_entropy" else None
        raise LoweringError(
            f"the model returns {output.dtype} {list(output.shape)}; {loss} needs float32 {wanted}",
            hint=hint or f"other losses: {', '.join(name for name in LOSSES if name != loss)}",
        )
    return tuple(output.shape[1:])
