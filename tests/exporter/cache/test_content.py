"""What is in a value decides its hash, and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from edgefl_exporter.cache.content import Unnameable, content
from edgefl_exporter.methods import FedAvg, FedProx
from edgefl_exporter.programs.losses import CrossEntropy
from edgefl_exporter.recipe import Recipe
from edgefl_exporter.zoo import ZOO


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LSTM(4, 2), nn.BatchNorm1d(2))


def changed(change: Callable[[nn.Sequential], object]) -> nn.Sequential:
    made = net()
    change(made)
    return made


def times(factor: float) -> Callable[[float], float]:
    return lambda x: x * factor


def test_equal_models_have_one_hash() -> None:
    assert content(net()) == content(net())


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[0].weight.data[0, 0].add_(1e-6),
        lambda net: net[3].running_mean[0].add_(1e-6),
        lambda net: net[0].weight.requires_grad_(False),
        lambda net: net[3].eval(),
        lambda net: setattr(net[3], "eps", 1e-4),
        lambda net: setattr(net, "1", nn.Tanh()),
        lambda net: setattr(net, "scale", 2),
        lambda net: setattr(net[0], "forward", times(2.0)),
        lambda net: net[0].register_forward_hook(lambda module, args, output: output * 2),
        lambda net: net[0].register_buffer("mask", torch.ones(4), persistent=False),
    ],
)
def test_whatever_changes_in_a_model_changes_its_hash(change: Callable[[nn.Sequential], object]) -> None:
    assert content(changed(change)) != content(net())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (1, True),
        ("1", b"1"),
        (0.0, -0.0),
        (["ab", "c"], ["a", "bc"]),
        ([["a"], "b"], [["a", "b"]]),
        ([], {}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (np.zeros(2, np.float32), np.zeros(2, np.int32)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), nn.Parameter(torch.zeros(2))),
        (times(2.0), times(3.0)),
        (lambda x: x + 1, lambda x: x + 2),
        (partial(max, 1), partial(max, 2)),
        (nn.ReLU, nn.GELU),
        (torch.relu, torch.sigmoid),
        (CrossEntropy(), CrossEntropy(label_smoothing=0.1)),
        (FedAvg(), FedProx()),
        (Recipe(), Recipe(seed=1)),
        (Recipe(), Recipe(train=["head.*"])),
        (Recipe(), Recipe(clip_norm=1.0)),
    ],
)
def test_values_that_differ(a: object, b: object) -> None:
    assert content(a) != content(b)
    assert content(a) == content(a)


def test_the_order_of_a_set_does_not_count() -> None:
    assert content({"a", "b", "c"}) == content({"c", "a", "b"})


def test_a_model_that_holds_itself_ends() -> None:
    model = net()
    model.__dict__["whole"] = model
    assert content(model) != content(net())


def test_what_nobody_can_name_is_not_named() -> None:
    class Local(nn.Module):
        pass

    unnameable = (Local(), torch.Generator(), threading.Lock(), net()[0].weight.to_sparse(), np.array([object()]))
    for value in unnameable:
        with pytest.raises(Unnameable):
            content(value)


@pytest.mark.parametrize("name", ["digits", "resnet8", "vit", "deq-conv", "char-lstm", "tabular"])
def test_every_kind_of_model_of_the_zoo_can_be_named(name: str) -> None:
    assert content(ZOO[name].make()) == content(ZOO[name].make())
