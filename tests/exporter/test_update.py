"""From gradients to the next state: what is added, clipped and grouped before the optimizer's step, by hand and against
PyTorch's own means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from edgefl.errors import InputError
from edgefl.manifest import Input
from edgefl_exporter.programs.optimizers import SGD, Adam
from edgefl_exporter.programs.update import Group, Update

W = {"body.w": torch.tensor([1.0, -2.0]), "head.w": torch.tensor([[0.5], [3.0]])}
G = {"body.w": torch.tensor([3.0, 0.0]), "head.w": torch.tensor([[0.0], [4.0]])}  # norms 3 and 4, together 5
LR = SGD(learning_rate=0.1)
ONE = torch.tensor(1.0)


def values(update: Update, **changes: float) -> dict[str, Tensor]:
    """State before the first step and the settings' defaults, some of them changed."""
    settings = {entry.name: torch.tensor(changes.get(entry.name, entry.default)) for entry in update.settings}
    state = update.state(W)
    return state | settings | {k: torch.full_like(state[k], v) for k, v in changes.items() if k in state}


def moved(update: Update, gradients: Mapping[str, Tensor] = G, **changes: float) -> dict[str, list[float]]:
    """By how much one step of rate 0.1 goes against each parameter, in gradients."""
    weights, _ = update.step(W, gradients, values(update, **changes), ONE)
    return {name: ((W[name] - w) / 0.1).flatten().tolist() for name, w in weights.items()}


def approx(**wanted: list[float]) -> dict[str, Any]:
    return {f"{name}.w": pytest.approx(value, rel=1e-5, abs=1e-6) for name, value in wanted.items()}


# --- groups -------------------------------------------------------------------------------------------------------


def test_without_options_it_is_the_optimizers_step() -> None:
    assert moved(Update(LR)) == approx(body=[3, 0], head=[0, 4])


def test_the_rate_is_the_setting_not_the_default() -> None:
    assert moved(Update(LR), learning_rate=0.2) == approx(body=[6, 0], head=[0, 8])


def test_a_groups_learning_rate_is_a_factor() -> None:
    update = Update(LR, (Group(("head.*",), learning_rate=0.5),))
    assert moved(update) == approx(body=[3, 0], head=[0, 2])
    assert moved(update, learning_rate=0.3) == approx(body=[9, 0], head=[0, 6])
    assert moved(Update(LR, (Group(("*",), learning_rate=0.0),))) == approx(body=[0, 0], head=[0, 0])


def test_a_groups_weight_decay_is_in_place_of_the_optimizers() -> None:
    """0.5 of each weight, but of the head 2, or none."""
    decaying = SGD(learning_rate=0.1, weight_decay=0.5)
    assert moved(Update(decaying)) == approx(body=[3.5, -1], head=[0.25, 5.5])
    assert moved(Update(decaying, (Group(("head.*",), weight_decay=2.0),))) == approx(body=[3.5, -1], head=[1, 10])
    assert moved(Update(decaying, (Group(("head.*",), weight_decay=0.0),))) == approx(body=[3.5, -1], head=[0, 4])


def test_the_first_group_that_matches_has_a_parameter() -> None:
    update = Update(LR, (Group(("body.*",), learning_rate=2.0), Group(("*.w",), learning_rate=3.0)))
    assert moved(update) == approx(body=[6, 0], head=[0, 12])


def test_a_group_that_matches_nothing_is_refused_with_what_there_is() -> None:
    Update(LR, (Group(("head.*", "*.w")),)).check(W)
    with pytest.raises(InputError) as caught:
        Update(LR, (Group(("head.*", "tail.*")),)).check(W)
    assert caught.value.message == "group 'tail.*' matches no trained parameter"
    assert caught.value.hint == "there is: body.w, head.w"


@pytest.mark.parametrize(("count", "end"), [(8, "w7"), (9, "w7, ...")])
def test_eight_names_are_said(count: int, end: str) -> None:
    with pytest.raises(InputError) as caught:
        Update(LR, (Group(("head.*",)),)).check({f"w{i}": W["body.w"] for i in range(count)})
    assert caught.value.hint == f"there is: w0, w1, w2, w3, w4, w5, w6, {end}"


# --- clipping -----------------------------------------------------------------------------------------------------


def test_all_gradients_are_clipped_by_their_norm_together() -> None:
    """The norm is 5: clipped to 2.5 everything is halved; below its limit nothing changes."""
    update = Update(LR, clip_norm=2.5)
    assert moved(update) == approx(body=[1.5, 0], head=[0, 2])
    assert moved(update, clip_norm=1.0) == approx(body=[0.6, 0], head=[0, 0.8])  # the setting counts
    assert moved(update, clip_norm=6.0) == approx(body=[3, 0], head=[0, 4])


def test_a_group_that_clips_is_clipped_by_its_own_norm() -> None:
    """The head to 1, of 4; the rest, of 3, to 1.5. Without a limit for the rest, it is left alone."""
    groups = (Group(("head.*",), clip_norm=1.0),)
    assert moved(Update(LR, groups, clip_norm=1.5)) == approx(body=[1.5, 0], head=[0, 1])
    assert moved(Update(LR, groups)) == approx(body=[3, 0], head=[0, 1])
    assert moved(Update(LR, (Group(("*",), clip_norm=2.5),), clip_norm=1e-3)) == approx(body=[1.5, 0], head=[0, 2])
    apart = (Group(("body.*",), clip_norm=1.0), Group(("head.*",), clip_norm=2.0))
    assert moved(Update(LR, apart)) == approx(body=[1, 0], head=[0, 2])
    together = (Group(("body.*",), learning_rate=2.0), Group(("head.*",)))  # in groups, and clipped as one
    assert moved(Update(LR, together, clip_norm=2.5)) == approx(body=[3, 0], head=[0, 2])


def test_gradients_of_next_to_nothing_are_left_alone() -> None:
    """Their norm is less than the epsilon that keeps zero from being divided by zero."""
    for size in (0.0, 1e-8):
        tiny = {name: g * size for name, g in G.items()}
        there = moved(Update(LR, clip_norm=1.0), tiny, learning_rate=1e6)
        assert there == approx(body=[3e7 * size, 0], head=[0, 4e7 * size])


# --- FedProx and SCAFFOLD -----------------------------------------------------------------------------------------


def test_the_proximal_term_pulls_towards_the_anchor() -> None:
    """mu (w - anchor): with the anchor at 0 and mu = 2, twice the weight."""
    update = Update(LR, proximal=2.0)
    assert moved(update) == approx(body=[3, 0], head=[0, 4])  # the first anchor is the weights themselves
    away = {"anchor.body.w": 0.0, "anchor.head.w": 1.0}
    assert moved(update, **away) == approx(body=[5, -4], head=[-1, 8])
    assert moved(update, proximal=0.5, **away) == approx(body=[3.5, -1], head=[-0.25, 5])
    assert Update(LR, proximal=0.0).state(W).keys() == {"anchor.body.w", "anchor.head.w"}


def test_the_anchor_is_a_copy_of_the_weights() -> None:
    anchored = Update(LR, proximal=2.0).state(W)["anchor.body.w"]
    assert anchored is not W["body.w"] and anchored.tolist() == [1, -2]


def test_controls_correct_gradients_and_count_what_they_were() -> None:
    """g - c_i + c; the sum and its count are of the gradients alone, for c_i's next value."""
    update = Update(LR, controls=True)
    given = {"control.body.w": 2.0, "own_control.body.w": 0.5, "own_control.head.w": 1.0}
    assert moved(update, **given) == approx(body=[4.5, 1.5], head=[-1, 3])
    _, state = update.step(W, G, values(update, **given), ONE)
    assert state["optimizer.control_sum.body.w"].tolist() == [3, 0] and state["optimizer.control_steps"] == 1
    _, state = update.step(W, G, values(update) | state, ONE)
    assert state["optimizer.control_sum.head.w"].tolist() == [[0], [8]] and state["optimizer.control_steps"] == 2


def test_corrected_then_pulled_then_clipped() -> None:
    """(3, 0) + c 1 + mu w (1, -2) = (5, -1); of the head (0, 4) + 1 + (0.5, 3) = (1.5, 8); the norm is clipped last."""
    update = Update(LR, proximal=1.0, controls=True, clip_norm=1.0)
    norm = math.sqrt(25 + 1 + 2.25 + 64)
    given = {"control.body.w": 1.0, "control.head.w": 1.0, "anchor.body.w": 0.0, "anchor.head.w": 0.0}
    assert moved(update, **given) == approx(body=[5 / norm, -1 / norm], head=[1.5 / norm, 8 / norm])


# --- micro-batches ------------------------------------------------------------------------------------------------


def test_gradients_of_three_batches_make_one_step_of_their_mean() -> None:
    """Each example counts the same: (2 * 3 + 1 * 6 + 3 * 0) / 6 = 2. Before the third batch nothing moves."""
    update = Update(SGD(learning_rate=0.1, momentum=0.9), micro_batches=3)
    weights: Mapping[str, Tensor] = W
    here = values(update)
    for count, (examples, g) in enumerate([(2.0, 3.0), (1.0, 6.0)], start=1):
        weights, state = update.step(weights, full(g), here, torch.tensor(examples))
        here |= state
        assert all(torch.equal(weights[name], w) for name, w in W.items())
        assert here["optimizer.micro_batch"] == count and not here["optimizer.momentum.body.w"].any()
    assert here["optimizer.examples"] == 3 and here["optimizer.gradient.body.w"].tolist() == [12, 12]
    weights, state = update.step(weights, full(0.0), here, torch.tensor(3.0))
    assert weights["body.w"].tolist() == pytest.approx([0.8, -2.2])
    assert state["optimizer.momentum.body.w"].tolist() == [2, 2]
    emptied = ("examples", "micro_batch", "gradient.body.w", "gradient.head.w")
    assert not any(state[f"optimizer.{name}"].any() for name in emptied)


def test_how_many_batches_make_a_step_is_a_setting() -> None:
    update = Update(LR, micro_batches=3)
    assert moved(update, micro_batches=1.0) == approx(body=[3, 0], head=[0, 4])
    assert moved(update, micro_batches=2.0) == approx(body=[0, 0], head=[0, 0])


def full(value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(w, value) for name, w in W.items()}


# --- against PyTorch ----------------------------------------------------------------------------------------------

UPDATES = {
    "plain": Update(SGD(momentum=0.9)),
    "all at once": Update(
        Adam(learning_rate=0.05, weight_decay=0.1, decoupled=True),
        (Group(("head.*",), learning_rate=0.5, weight_decay=0.3, clip_norm=0.5),),
        clip_norm=1.0,
        proximal=0.2,
        controls=True,
        micro_batches=2,
    ),
    "controls": Update(SGD(momentum=0.5, weight_decay=0.1), controls=True),
    "proximal": Update(SGD(momentum=0.5), proximal=0.7, clip_norm=2.0),
    "micro": Update(Adam(), (Group(("body.*",), learning_rate=2.0),), micro_batches=3),
}


@pytest.mark.parametrize("name", UPDATES)
def test_seven_steps_are_those_of_pytorchs_own_means(name: str) -> None:
    """Batches of one to three examples, anchors and controls away from what they are at the start."""
    update = UPDATES[name]
    draw = torch.Generator().manual_seed(1)
    here = values(update)
    for key in here:
        if key.startswith(("anchor.", "control.", "own_control.")):
            here[key] = torch.randn(here[key].shape, generator=draw)
    weights: Mapping[str, Tensor] = W
    for step in range(7):
        examples = 1 + step % 3
        gradients = {key: torch.randn(w.shape, generator=draw) for key, w in W.items()}
        theirs = {key: w.clone().requires_grad_() for key, w in weights.items()}
        for key, w in theirs.items():
            w.grad = gradients[key].clone()
        wanted = update.torch(theirs, here, examples)
        weights, state = update.step(weights, gradients, here, torch.tensor(float(examples)))
        assert set(state) == set(wanted) == set(update.written(W))
        for key, value in {**weights, **state}.items():
            want = (theirs | wanted)[key].detach()
            assert want.dtype == value.dtype, key
            torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
        here |= state


# --- what it declares ---------------------------------------------------------------------------------------------


def test_its_settings_are_those_of_its_options() -> None:
    assert Update(LR).settings == (Input("learning_rate", "float32", (), "setting", 0.1),)
    full = Update(LR, clip_norm=1.5, proximal=0.0, micro_batches=2)
    assert [(entry.name, entry.default) for entry in full.settings] == [
        ("learning_rate", 0.1),
        ("clip_norm", 1.5),
        ("proximal", 0.0),
        ("micro_batches", 2.0),
    ]


def test_its_state_begins_at_zero_but_for_the_anchor() -> None:
    state = Update(SGD(momentum=0.9), proximal=0.1, controls=True, micro_batches=2).state(W)
    each = (
        "optimizer.momentum.",
        "anchor.",
        "control.",
        "own_control.",
        "optimizer.control_sum.",
        "optimizer.gradient.",
    )
    once = {"optimizer.control_steps", "optimizer.examples", "optimizer.micro_batch"}
    assert state.keys() == {f"{kind}{name}" for kind in each for name in W} | once
    assert not any(value.any() for name, value in state.items() if not name.startswith("anchor."))
    counters = ("optimizer.control_steps", "optimizer.micro_batch")
    assert {state[name].dtype for name in counters} == {torch.int64} and state["optimizer.examples"].is_floating_point()


def test_a_step_writes_no_anchor_and_no_control_and_an_aggregator_sets_the_common_ones() -> None:
    update = Update(LR, proximal=0.1, controls=True)
    sums = {f"optimizer.control_sum.{name}" for name in W}
    assert set(update.written(W)) == sums | {"optimizer.control_steps"}
    assert update.announced(W) == ("control.body.w", "control.head.w")
    assert Update(LR).announced(W) == () and Update(LR).written(W) == () and Update(LR).state(W) == {}


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm is 0.0; expected a finite number above 0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; expected a finite number above 0"),
        ({"clip_norm": math.inf}, "clip_norm is inf; expected a finite number above 0"),
        ({"proximal": -0.1}, "proximal is -0.1; expected a finite number, at least 0"),
        ({"proximal": math.nan}, "proximal is nan; expected a finite number, at least 0"),
        ({"micro_batches": 0}, "micro_batches is 0; expected at least 1"),
    ],
)
def test_an_update_that_trains_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Update(LR, **options)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "group head.*, *.w: learning_rate is -1.0; expected at least 0"),
        ({"learning_rate": math.inf}, "group head.*, *.w: learning_rate is inf; expected at least 0"),
        ({"weight_decay": -0.5}, "group head.*, *.w: weight_decay is -0.5; expected at least 0"),
        ({"clip_norm": 0.0}, "group head.*, *.w: clip_norm is 0.0; expected a number above 0"),
        ({"clip_norm": math.nan}, "group head.*, *.w: clip_norm is nan; expected a number above 0"),
    ],
)
def test_a_group_that_trains_the_wrong_way_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Group(("head.*", "*.w"), **options)
    assert caught.value.message == message


def test_a_group_has_patterns() -> None:
    with pytest.raises(InputError) as caught:
        Group(())
    assert (caught.value.message, caught.value.hint) == (
        "a group has no pattern for its parameters",
        "for example head.*",
    )
