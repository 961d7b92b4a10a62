"""Every loss: the lowered form is PyTorch's own number and gradient, and a program of it is proven."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgefl.errors import InputError, LoweringError
from edgefl_exporter import export
from edgefl_exporter.programs.losses import LOSSES, CrossEntropy, Loss, OwnLoss, Regression


def quantile(output: Tensor, labels: Tensor) -> Tensor:
    """The pinball loss at 0.9 of each example."""
    error = labels - output
    return torch.maximum(0.9 * error, -0.1 * error).mean(1)


SHAPES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "cross_entropy": (LOSSES["cross_entropy"], (5,)),
    "cross_entropy of places": (LOSSES["cross_entropy"], (3, 4, 4)),
    "label smoothing": (CrossEntropy(label_smoothing=0.1), (5,)),
    "soft_cross_entropy": (LOSSES["soft_cross_entropy"], (5,)),
    "next_token": (LOSSES["next_token"], (6, 5)),
    "binary_cross_entropy": (LOSSES["binary_cross_entropy"], (5,)),
    "mse": (LOSSES["mse"], (3, 2)),
    "huber": (Regression("huber", delta=0.3), (3,)),
    "own": (OwnLoss(quantile, torch.randn(8, 3, generator=torch.Generator().manual_seed(0))), (3,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_value_and_gradient_are_pytorchs(name: str) -> None:
    loss, shape = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    output = (3 * torch.randn(7, *shape, generator=generator)).requires_grad_()
    labels = loss.sample(loss.labels(output), 7, generator)
    each = loss.each(output, labels)
    assert each.shape == (7,)
    [got] = torch.autograd.grad(each.mean(), output)
    [want] = torch.autograd.grad(loss.torch(output, labels), output)
    torch.testing.assert_close(each.mean(), loss.torch(output, labels))
    torch.testing.assert_close(got, want)
    # At exactly 0, where a clamp or an absolute value has a kink and a zero-initialised head begins.
    zero = torch.zeros_like(output, requires_grad=True)
    [got] = torch.autograd.grad(loss.each(zero, labels).mean(), zero)
    [want] = torch.autograd.grad(loss.torch(zero, labels), zero)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("name", "shape"), [("cross_entropy", (3, 2, 2)), ("next_token", (4, 3)), ("mse", (2,))])
def test_programs_of_other_shapes(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    width = torch.zeros(shape).numel()
    net = nn.Sequential(nn.Linear(4, width), nn.Unflatten(1, shape))
    bundle = export(net, torch.zeros(1, 4), out=tmp_path / "m.bundle", name="m", loss=name)
    contract = bundle.manifest.data
    assert contract.labels == {"cross_entropy": (2, 2), "next_token": (4,), "mse": (2,)}[name]
    assert contract.classes == {"cross_entropy": 3, "next_token": 3, "mse": None}[name]
    assert [o.name for o in bundle.manifest.program("predict").outputs] == ["prediction" if name == "mse" else "logits"]


def test_correct_counts_the_part_of_an_example_that_is_right() -> None:
    logits = torch.tensor([[[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]])  # [1 example, 2 classes, 4 places]
    labels = torch.tensor([[0, 1, 1, 0]])
    assert LOSSES["cross_entropy"].measure(logits, labels)["correct"].tolist() == [0.75]


def test_what_a_loss_refuses() -> None:
    with pytest.raises(LoweringError, match=r"next_token needs float32 logits \[batch, time, classes\]"):
        LOSSES["next_token"].labels(torch.zeros(2, 3))
    with pytest.raises(LoweringError, match="the loss returns list; expected one number"):
        OwnLoss(lambda output, labels: [output], torch.zeros(1)).labels(torch.zeros(2, 3))  # type: ignore[arg-type, return-value]
    with pytest.raises(LoweringError, match=r"the loss fails on an output \[2, 3\] and labels \[2, 4\]: RuntimeError"):
        OwnLoss(lambda output, labels: output - labels, torch.zeros(1, 4)).labels(torch.zeros(2, 3))
    with pytest.raises(InputError, match="label smoothing is 1.0; expected 0 or more, less than 1"):
        CrossEntropy(label_smoothing=1.0)
