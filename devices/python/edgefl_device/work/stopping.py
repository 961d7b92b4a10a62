"""Stopping work that is under way on another thread, also in the middle of a step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgefl.errors import EdgeflError


class Stopped(EdgeflError):
    """Work was stopped on request; the state is what it was before."""


class Stop:
    """A request to stop. Work looks at it between steps; the step that is running is ended by the runtime.

    One large operator ends by itself, and so does the making of a session: onnxruntime looks at its `terminate` between
    the operators of a graph, those in a Loop's body too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._step: Any = None  # the RunOptions of the step that is running

    def request(self) -> None:
        """Stop, from any thread. For good: the next work has a `Stop` of its own."""
        with self._lock:
            self._requested = True
            if self._step is not None:
                self._step.terminate = True

    @property
    def requested(self) -> bool:
        return self._requested

    @contextmanager
    def during(self, run_options: Any) -> Iterator[None]:
        """While the block runs a step with these RunOptions, a request ends it; one from before does so, too."""
        with self._lock:
            self._step = run_options
            run_options.terminate = self._requested
        try:
            yield
        finally:
            with self._lock:
                self._step = None
