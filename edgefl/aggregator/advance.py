"""What replies, or the work of a method's own model, make of its state: a state of numbers, or NotFinite."""

from __future__ import annotations

import math

import numpy as np

from edgefl.aggregator.tally import Tally
from edgefl.errors import EdgeflError, InputError, NotFinite
from edgefl.method import Fused, Method, State, WithModel, Worked


def after_round(method: Method, state: State, tally: Tally) -> tuple[Fused, State]:
    """The replies as one, and the state that follows. Raises NotFinite where that is no state."""
    try:
        with np.errstate(all="ignore"):  # a number that is none is found below
            fused = tally.fuse()
            after = method.advance(state, fused)
    except InputError:
        raise  # a setting that is wrong, and would be in every attempt
    except (EdgeflError, ArithmeticError, ValueError) as error:
        raise NotFinite(f"the replies cannot be fused: {error}") from error
    _check_finite(after, state)
    return fused, after


def after_work(method: WithModel, state: State, done: Worked) -> State:
    """The state after the work of the method's model. Raises NotFinite where that is none."""
    with np.errstate(all="ignore"):  # a number that is none is found below
        after = method.worked(state, done)
    _check_finite(after, state)
    return after


def _check_finite(state: State, before: State) -> None:
    """Raise NotFinite where what is new in a state is no number."""
    for name, value in state.tensors.items():
        if value is not before.tensors.get(name) and value.dtype.kind == "f" and not np.isfinite(value).all():
            raise NotFinite(f"{name!r} would not be finite")
    for name, number in state.numbers.items():
        if not math.isfinite(number):
            raise NotFinite(f"{name!r} would be {number}")
