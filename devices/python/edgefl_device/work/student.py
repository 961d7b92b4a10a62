"""A device that never leaves the aggregator: carries out tasks on tensors that are given to it, and gives them back."""

from __future__ import annotations

from edgefl.bundle import Bundle
from edgefl.data_contract import DataContract
from edgefl.method import Work, Worked
from edgefl.tensors import Tensors
from edgefl_device.engines.runtime import Runtime
from edgefl_device.work.interpreter import answer
from edgefl_device.work.private import Private


class Student:
    """A bundle's model as a function of its state. It has no data of its own: feeds are "announced" and "noise"."""

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self.bundle = bundle
        self._runtime = Runtime(bundle, threads=threads)

    @property
    def data(self) -> DataContract:
        return self.bundle.manifest.data

    @property
    def initial(self) -> Tensors:
        """The bundle's state."""
        return self.bundle.weights()

    def carry_out(self, work: Work) -> Worked:
        """What the tasks send, and the state after them. Raises as `perform` does."""
        done = answer(self._runtime, work.tasks, work.tensors, {}, Private(work.state), device="student")
        return Worked(done.outcome.tensors, done.private.tensors)
