"""torch.utils.checkpoint without its recomputation, which would take other weights and draw other random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from edgefl_exporter.torch_internals import replaced_checkpoints


class _Direct:
    """In place of the autograd function of the reentrant form."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
        return function(*args)


def _nothing(*_args: Any, **_kwargs: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def without_recomputation() -> Iterator[None]:
    """While the block runs, a checkpointed function is simply called: the same numbers, nothing saved in memory."""
    with replaced_checkpoints(_Direct, _nothing):
        yield
