"""A step that never ends: a device can be told to stop, stops by its own clock, and is not lost to it for ever."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hostile import endless, with_program

from edgefl.bundle import Bundle
from edgefl.method import Task
from edgefl_device.contract import fit_to_contract
from edgefl_device.dataset import Dataset
from edgefl_device.interpreter import perform
from edgefl_device.runtime import Runtime
from edgefl_device.stopping import Stop, Stopped

TRAIN = Task(program="train", load=("w",), batch_size=0, settings={"learning_rate": 0.25}, send=("w",))
DATA = Dataset(np.eye(2, dtype=np.float32), np.ones(2, np.float32))


@pytest.fixture(scope="session")
def endless_bundle(regression: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Training goes through a Loop of 2^40 turns; evaluation is as it was."""
    return with_program(regression, tmp_path_factory.mktemp("endless") / "endless.bundle", "train", endless)


class Work:
    """Tasks on a thread of their own, as a device carries them out."""

    def __init__(self, runtime: Runtime) -> None:
        self.stop = Stop()
        self.stopped = False
        self._runtime = runtime
        self._thread = threading.Thread(target=self._carry_out, daemon=True)
        self._thread.start()

    def _carry_out(self) -> None:
        announced = {"w": np.full(2, 3, np.float32)}
        feeds = {"train": fit_to_contract(DATA, self._runtime.manifest.data, "data")}
        try:
            perform(self._runtime, [TRAIN], announced, feeds, device="pi-1", stop=self.stop)
        except Stopped:
            self.stopped = True

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive(), "the step goes on"


@pytest.mark.parametrize("requested", ["before the step", "in the step"])
def test_a_loop_without_an_end_is_stopped(endless_bundle: Bundle, requested: str) -> None:
    runtime = Runtime(endless_bundle)
    work = Work(runtime)
    if requested == "in the step":
        while work.stop._step is None:
            assert work._thread.is_alive()
    work.stop.request()
    work.join()
    assert work.stopped
    np.testing.assert_array_equal(runtime.state()["w"], [0, 0])  # what was loaded is undone
    assert runtime.step("evaluate", {"x": DATA.features, "y": DATA.labels})["loss"] == 1  # the runtime goes on
