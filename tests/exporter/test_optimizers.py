"""The optimizers' arithmetic: one step by hand, many against torch.optim, and torch's own put into our state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from edgefl.errors import InputError
from edgefl_exporter.programs.optimizers import SGD, Adam, Optimizer

W = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5], [3.0]])}
G = {"a": torch.tensor([0.5, 4.0]), "b": torch.tensor([[-1.0], [0.25]])}
RATES = {"a": torch.tensor(0.1), "b": torch.tensor(0.2)}
NO_DECAY = {"a": 0.0, "b": 0.0}
DECAY = {"a": 0.5, "b": 0.0}  # of b there is none: a decay is each parameter's own

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.8, nesterov=True),
    "adam": Adam(),
    "adam, other numbers": Adam(betas=(0.5, 0.7), eps=0.1),
    "adamw": Adam(decoupled=True, betas=(0.8, 0.99), eps=1e-3),
}


def after(optimizer: Optimizer, steps: int = 1, decays: Mapping[str, float] = NO_DECAY) -> dict[str, list[float]]:
    """Parameters and state after so many steps of the same gradient, as flat lists."""
    weights: Mapping[str, Tensor] = W
    state: Mapping[str, Tensor] = optimizer.state(W)
    for _ in range(steps):
        weights, state = optimizer.step(weights, G, state, RATES, decays)
    return {name: value.flatten().tolist() for name, value in {**weights, **state}.items()}


def assert_close(got: Mapping[str, list[float]], want: Mapping[str, list[float]]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


# --- by hand ------------------------------------------------------------------------------------------------------


def test_a_step_of_sgd_is_the_gradient_times_the_rate_of_each_parameter() -> None:
    assert_close(after(SGD()), {"a": [0.95, -2.4], "b": [0.7, 2.95]})


def test_weight_decay_adds_a_part_of_the_weight_to_the_gradient() -> None:
    """a: 1 - 0.1 * (0.5 + 0.5 * 1), -2 - 0.1 * (4 - 0.5 * 2)"""
    assert_close(after(SGD(), decays=DECAY), {"a": [0.9, -2.3], "b": [0.7, 2.95]})


def test_momentum_adds_a_part_of_the_step_before() -> None:
    """m = g, then 0.5 g + g"""
    want = {
        "a": [1 - 0.1 * 2.5 * 0.5, -2 - 0.1 * 2.5 * 4],
        "b": [0.5 + 0.2 * 2.5, 3 - 0.2 * 2.5 * 0.25],
        "optimizer.momentum.a": [0.75, 6.0],
        "optimizer.momentum.b": [-1.5, 0.375],
    }
    assert_close(after(SGD(momentum=0.5), 2), want)


def test_nesterov_looks_half_a_step_ahead() -> None:
    """g + 0.5 m where m = g: one and a half gradients; the momentum that is kept is the same as without."""
    got = after(SGD(momentum=0.5, nesterov=True))
    assert_close({"a": got["a"], "b": got["b"]}, {"a": [0.925, -2.6], "b": [0.8, 2.925]})
    assert got["optimizer.momentum.a"] == [0.5, 4.0]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_of_adam_is_the_rate_whatever_the_gradients_size(steps: int) -> None:
    """With an unchanging gradient m / sqrt(v) is its sign, once both are freed of their bias."""
    moved = {"a": [1 - 0.1 * steps, -2 - 0.1 * steps], "b": [0.5 + 0.2 * steps, 3 - 0.2 * steps]}
    got = after(Adam(), steps)
    assert_close({"a": got["a"], "b": got["b"]}, moved)
    assert got["optimizer.step"] == [steps]
    assert got["optimizer.mean.a"] == pytest.approx([(1 - 0.9**steps) * 0.5, (1 - 0.9**steps) * 4])
    assert got["optimizer.square.a"] == pytest.approx([(1 - 0.999**steps) * 0.25, (1 - 0.999**steps) * 16], rel=1e-4)


def test_a_large_eps_makes_a_step_of_adam_smaller() -> None:
    """g / (|g| + eps), with eps = 1: 0.5 / 1.5 and 4 / 5"""
    assert_close({"a": after(Adam(eps=1.0))["a"]}, {"a": [1 - 0.1 / 3, -2 - 0.1 * 0.8]})


def test_decay_is_lost_in_adams_sign_and_shrinks_the_weight_in_adamw() -> None:
    """Adam: the gradients keep their signs (0.5 + 0.5, 4 - 1), so the step is the same. AdamW: w * (1 - 0.1 * 0.5)."""
    assert_close({"a": after(Adam(), decays=DECAY)["a"]}, {"a": [0.9, -2.1]})
    assert_close({"a": after(Adam(decoupled=True), decays=DECAY)["a"]}, {"a": [0.95 - 0.1, -1.9 - 0.1]})
    assert after(Adam(decoupled=True), decays=DECAY)["optimizer.mean.a"] == pytest.approx([0.05, 0.4])
    assert after(Adam(), decays=DECAY)["optimizer.mean.a"] == pytest.approx([0.1, 0.3])


# --- against PyTorch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decays", [NO_DECAY, DECAY], ids=["no decay", "decay"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_seven_steps_are_torchs(name: str, decays: Mapping[str, float]) -> None:
    """Each from where the last one led, with a gradient of its own; torch starts from our state and ends in it."""
    optimizer = OPTIMIZERS[name]
    draw = torch.Generator().manual_seed(0)
    ours: Mapping[str, Tensor] = W
    state: Mapping[str, Tensor] = optimizer.state(W)
    theirs = {key: w.clone().requires_grad_() for key, w in W.items()}
    groups = [{"params": [w], "lr": float(RATES[key]), "weight_decay": decays[key]} for key, w in theirs.items()]
    torchs = optimizer.torch(groups, theirs, state)
    for _ in range(7):
        gradients = {key: torch.randn(w.shape, generator=draw) for key, w in W.items()}
        ours, state = optimizer.step(ours, gradients, state, RATES, decays)
        for key, w in theirs.items():
            w.grad = gradients[key].clone()
        torchs.step()
        assert_same(ours, theirs)
        assert_same(state, optimizer.torch_state(torchs, theirs))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_own_goes_on_from_a_state_of_ours(name: str) -> None:
    """After three steps of ours, the fourth is the same by either; and torch's leaves the state it was given alone."""
    optimizer = OPTIMIZERS[name]
    ours: Mapping[str, Tensor] = W
    state: Mapping[str, Tensor] = optimizer.state(W)
    for _ in range(3):
        ours, state = optimizer.step(ours, G, state, RATES, DECAY)
    before = {key: value.clone() for key, value in state.items()}
    theirs = {key: w.clone().requires_grad_() for key, w in ours.items()}
    groups = [{"params": [w], "lr": float(RATES[key]), "weight_decay": DECAY[key]} for key, w in theirs.items()]
    torchs = optimizer.torch(groups, theirs, state)
    for key, w in theirs.items():
        w.grad = -G[key]
    torchs.step()
    assert_same(state, before)
    ours, state = optimizer.step(ours, {key: -g for key, g in G.items()}, state, RATES, DECAY)
    assert_same(ours, theirs)
    assert_same(state, optimizer.torch_state(torchs, theirs))


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert theirs[name].dtype == value.dtype, name
        torch.testing.assert_close(value, theirs[name].detach(), rtol=1e-5, atol=1e-6)


def test_an_early_step_of_adam_keeps_its_digits() -> None:
    """1 - 0.999^1 in float32 is 0.00099998713: a step would be wrong in its fifth digit."""
    (moved,) = after(Adam(eps=0.0))["a"][:1]
    assert moved == pytest.approx(0.9, rel=3e-7)


def test_a_scalar_parameter_stays_float32() -> None:
    """Adam's powers of beta are float64, which one number times another would become too."""
    scalar = {"a": torch.tensor(1.0)}
    for optimizer in OPTIMIZERS.values():
        weights, state = optimizer.step(scalar, scalar, optimizer.state(scalar), RATES, DECAY)
        assert {value.dtype for value in (*weights.values(), *state.values())} <= {torch.float32, torch.int64}
        assert weights["a"].dtype == torch.float32


# --- state --------------------------------------------------------------------------------------------------------


def test_the_state_before_the_first_step() -> None:
    """Named for its reset: everything begins with "optimizer."; nothing is kept that a step would not read."""
    assert SGD().state(W) == {}
    assert {k: v.tolist() for k, v in SGD(momentum=0.1).state(W).items()} == {
        "optimizer.momentum.a": [0.0, 0.0],
        "optimizer.momentum.b": [[0.0], [0.0]],
    }
    state = Adam().state(W)
    assert list(state) == [
        "optimizer.step",
        "optimizer.mean.a",
        "optimizer.square.a",
        "optimizer.mean.b",
        "optimizer.square.b",
    ]
    assert state["optimizer.step"].dtype == torch.int64 and not any(value.any() for value in state.values())


def test_only_adams_squares_are_not_proven_from_zero() -> None:
    """sqrt has an infinite slope there, so a proof starts where training soon is."""
    assert SGD(momentum=0.9).typical(W) == {}
    assert Adam().typical(W) == {"optimizer.square.a": 0.01, "optimizer.square.b": 0.01}


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((SGD, name) for name in ("learning_rate", "momentum", "weight_decay")),
        *((Adam, name) for name in ("learning_rate", "weight_decay", "eps")),
    ],
)
def test_numbers_that_train_nothing_are_refused(kind: Any, name: str, value: float) -> None:
    with pytest.raises(InputError) as caught:
        kind(**{name: value})
    assert caught.value.message == f"{name} is {value}; expected a finite number, at least 0"


def test_zero_is_a_number_one_may_want() -> None:
    SGD(learning_rate=0.0, momentum=0.0, weight_decay=0.0)
    Adam(learning_rate=0.0, weight_decay=0.0, eps=0.0, betas=(0.0, 0.0))


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan)])
def test_betas_that_forget_nothing_or_more_than_all_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(InputError) as caught:
        Adam(betas=betas)
    assert caught.value.message == f"betas are {betas}; expected 0 or more, less than 1"


def test_nesterov_without_momentum_is_refused_as_torch_does() -> None:
    with pytest.raises(InputError) as caught:
        SGD(nesterov=True)
    assert (caught.value.message, caught.value.hint) == ("nesterov needs a momentum", "for example 0.9")
