"""A loop whose number of turns is known at run time only, in PyTorch. It becomes one ONNX Loop: `loop_onnx`.

The body is traced once, in line between two marks, so that all that lowers a model lowers it too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from edgefl.errors import LoweringError
from edgefl_exporter.torch_internals import (
    TorchDispatchMode,
)

States = tuple[Tensor, ...]
# The next states, of equal shapes and dtypes, and whether to go on: a bool [].
Body = Callable[[States], tuple[States, Tensor]]

_traced: ContextVar[bool] = ContextVar("_traced", default=False)


def repeat(body: Body, states: States, most: Tensor) -> States:
    """`body` applied to the states until it says stop, `most` times at most: a number []. Without gradient."""
    with torch.no_grad():
        if _traced.get():
            return _marked(body, states, most)
        for _ in range(int(most)):
            states, again = body(states)
            if not again:
                break
        return states


@contextlib.contextmanager
def traced_loops() -> Iterator[None]:
    """While the block runs, `repeat` leaves its marks in a graph that is being traced."""
    token = _traced.set(True)
    try:
        yield
    finally:
        _traced.reset(token)


def _marked(body: Body, states: States, most: Tensor) -> States:
    go = torch.ones((), dtype=torch.bool)
    inside = loop_begin(most.to(torch.int64), go, list(states))
    with _Same():  # type: ignore[no-untyped-call]
        after, again = body(tuple(inside))
    return tuple(loop_end(inside, list(after), again))


class _Same(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While the block runs, what differs from one turn to the next without being a state is refused."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise LoweringError(
                f"operator {func} in the block of an equilibrium: each step of the solve would be another function",
                hint="draw random numbers in inject or head",
            )
        return func(*args, **(kwargs or {}))


@torch.library.custom_op("edgefl::loop_begin", mutates_args=())
def loop_begin(most: Tensor, go: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    """The states as the body sees them."""
    return [state.clone() for state in states]


@loop_begin.register_fake
def _(most: Tensor, go: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(state) for state in states]


@torch.library.custom_op("edgefl::loop_end", mutates_args=())
def loop_end(inside: Sequence[Tensor], after: Sequence[Tensor], again: Tensor) -> list[Tensor]:
    """The states after the last turn. `inside`, what `loop_begin` gave, tells to which beginning this end belongs."""
    return [state.clone() for state in after]


@loop_end.register_fake
def _(inside: Sequence[Tensor], after: Sequence[Tensor], again: Tensor) -> list[Tensor]:
    return [torch.empty_like(state) for state in inside]
