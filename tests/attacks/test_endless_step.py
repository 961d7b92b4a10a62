"""A step that never ends: a device can be told to stop, stops by its own clock, and is not lost to it for ever."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hostile_bundles import endless, with_program
from memory import World
from processes import Process

import edgefl_broker
from edgefl.aggregator.settings import RoundSettings
from edgefl.bundle import Bundle
from edgefl.method import Task
from edgefl.methods.fedavg import FedAvg
from edgefl.protocol import TaskFailed
from edgefl_device.data.contract import fit_to_contract
from edgefl_device.data.dataset import Dataset
from edgefl_device.engines.runtime import Runtime
from edgefl_device.wire.failures import Failures
from edgefl_device.work.interpreter import perform
from edgefl_device.work.stopping import Stop, Stopped

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


# --- a device's own clock -----------------------------------------------------------------------------------------

DURATION_S = 10.0
LATE_S = 10.0 * 1.1 + 2  # what the network may take


@pytest.fixture
def world(tmp_path: Path, regression: Bundle) -> Iterator[World]:
    """One device, whose work never ends, and an aggregator that says nothing more once the round is announced."""
    method = FedAvg(regression.shared_weights(), rounds=1, batch_size=0, learning_rate=0.25)
    settings = RoundSettings(deadline_s=DURATION_S)
    made = World(tmp_path, regression, method, {"pi-1": DATA}, settings=settings)
    device = made.nodes["pi-1"]
    made.run(lambda: device.busy)
    forget_work(made)
    made.aggregator.tick = lambda now_s: []  # type: ignore[method-assign]
    made.aggregator.wake_s = lambda now_s: now_s + 1  # type: ignore[method-assign]
    yield made
    made.store.close()


def forget_work(world: World) -> None:
    """What the device has begun goes on for ever: the session waits for it, and time passes."""
    world.run(lambda: world.nodes["pi-1"].busy)
    world.nodes["pi-1"]._job = None


def working(world: World) -> bool:
    return world.nodes["pi-1"].session.working is not None


def failures(world: World) -> list[str]:
    return [m.reason for m in world.broker.said(TaskFailed)]  # type: ignore[union-attr]


def test_work_ends_by_the_devices_own_clock(world: World) -> None:
    world.run(lambda: bool(failures(world)))
    assert LATE_S <= world.now_s < LATE_S + 1
    assert failures(world) == ["took longer than the 10 s of the round"]
    assert not working(world)
    world.run(lambda: world.now_s > 100)
    assert not working(world) and len(failures(world)) == 1


def test_a_round_that_is_asked_again_gives_more_time(world: World) -> None:
    """The deadline passed, the aggregator asks again, and the slow device goes on with what it does."""
    world.run(lambda: world.now_s > DURATION_S + 1)
    world.carry_out(type(world.aggregator).tick(world.aggregator, world.now_s))
    world.run(lambda: world.now_s > LATE_S + 5)
    assert working(world) and not failures(world)
    world.run(lambda: bool(failures(world)))
    assert world.now_s >= DURATION_S + 1 + LATE_S


def test_a_failed_ask_is_taken_up_once_more_after_a_restart(world: World) -> None:
    device = world.nodes["pi-1"]
    lives = []
    for life in range(3):
        if life == 1:
            forget_work(world)
        world.run(lambda: bool(failures(world)))
        lives.append((failures(world), any("given up" in line for line in device.log)))
        world.broker.published.clear()
        device.log.clear()
        device.start()
    reason = "took longer than the 10 s of the round"
    refused = f"it failed 2 times, before and after a restart: {reason}"
    assert lives == [([reason], True), ([reason], True), ([refused], False)]


def test_what_fails_twice_in_one_life_may_be_tried_again_after_a_restart(tmp_path: Path) -> None:
    """A disk was full at two attempts, and is not any more."""
    key, other = (3, "a" * 16), (4, "b" * 16)
    first = Failures(tmp_path, "run")
    for _ in range(3):
        first.note(key, "no room")
    second = Failures(tmp_path, "run")
    assert second.refuses(key) == ""
    second.note(key, "no room")
    third = Failures(tmp_path, "run")
    assert third.refuses(key) == "it failed 2 times, before and after a restart: no room"
    assert third.refuses(other) == ""
    third.note(other, "?")
    assert Failures(tmp_path, "run").refuses(key) == ""
    (tmp_path / "run.failed").write_bytes(b"[" * 100_000)
    assert Failures(tmp_path, "run").refuses(key) == ""


# --- real processes -----------------------------------------------------------------------------------------------

RUN_FILE = """
name = "endless"
bundle = "endless.bundle"
[method]
name = "fedavg"
rounds = 1
learning_rate = 0.25
batch_size = 0
[round]
deadline_s = 1.0
"""


def test_a_device_in_an_endless_step_hears_and_leaves(
    endless_bundle: Bundle, tmp_path: Path, kill_later: Callable[[Process], Process]
) -> None:
    """Its aggregator is killed, so that only its own clock ends the step; then it is told to leave in the middle."""
    (tmp_path / "run.toml").write_text(RUN_FILE.replace("endless.bundle", str(endless_bundle.path)))
    np.savez(tmp_path / "data.npz", x=DATA.features, y=DATA.labels)
    broker = edgefl_broker.start()
    try:
        aggregator = kill_later(Process(tmp_path, "aggregate", "run.toml", "--broker", broker.url))
        aggregator.wait_for(lambda line: "run endless" in line)
        command = ("device", "--broker", broker.url, "--name", "pi-1", "--data", "data.npz", "--state", "state")
        device = kill_later(Process(tmp_path, *command))
        device.wait_for(lambda line: "bundle regression" in line)
        aggregator.kill()
        device.wait_for(lambda line: "given up: it took longer than the 1 s of the round" in line)
        device.kill()
        device = kill_later(Process(tmp_path, *command, "--run", _run_of(tmp_path)))
        aggregator = kill_later(Process(tmp_path, "aggregate", "run.toml", "--broker", broker.url, "--resume"))
        device.wait_for(lambda line: "bundle regression" in line)
        device.child.send_signal(signal.SIGINT)
        code, _, err = device.end()
        assert code == 130 and "left; state keeps what is needed to come back" in err
    finally:
        broker.stop()
    failed = json.loads((tmp_path / "state" / f"{_run_of(tmp_path)}.failed").read_bytes())
    assert failed["reason"] == "took longer than the 1 s of the round"


def _run_of(folder: Path) -> str:
    return next((folder / "runs").glob("endless-*")).name


@pytest.fixture
def kill_later() -> Iterator[Callable[[Process], Process]]:
    """Whatever is still running at the end of the test is killed."""
    started: list[Process] = []

    def note(process: Process) -> Process:
        started.append(process)
        return process

    yield note
    for process in started:
        process.child.kill()
        process.child.communicate()
