"""The thread that works: what it did is an event, how far it is a few a second; a new job stops the one before."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from edgefl_device import worker
from edgefl_device.work.interpreter import Progress
from edgefl_device.work.stopping import Stop, Stopped
from edgefl_device.worker import Failed, Performed, Progressed, Worker


def test_progress_says_batch_loss_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes a second, the first three; one in two is told."""
    now_s = 100.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(worker, "TELL_S", 2.0)
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def perform(job: Any, stop: Stop, progress: Progress) -> Any:
        nonlocal now_s
        for done in range(1, 7):
            now_s += 3.0 if done == 1 else 1.0
            progress("train", done, 6, done / 10)
        return "the answer"

    working = Worker(perform, events.put)
    working.begin("the job")  # type: ignore[arg-type]
    assert events.get(timeout=20) == Progressed("the job", "train", 2, 6, 0.2, 4.0)  # type: ignore[arg-type]
    assert events.get(timeout=20) == Progressed("the job", "train", 4, 6, 0.4, 2.0)  # type: ignore[arg-type]
    assert events.get(timeout=20) == Progressed("the job", "train", 6, 6, 0.6, 0.0)  # type: ignore[arg-type]
    assert events.get(timeout=20) == Performed("the job", "the answer")  # type: ignore[arg-type]
    working.end()
    assert working.has_ended()


def test_a_new_job_stops_the_one_before_and_a_bug_is_a_failure() -> None:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    begun = threading.Event()

    def perform(job: Any, stop: Stop, progress: Progress) -> Any:
        if job == "long":
            begun.set()
            while not stop.requested:
                pass
            raise Stopped("stopped on request")
        raise ZeroDivisionError("ours")

    working = Worker(perform, events.put)
    working.begin("long")  # type: ignore[arg-type]
    assert begun.wait(20)
    working.begin("wrong")  # type: ignore[arg-type]
    assert events.get(timeout=20) == Failed("wrong", "ZeroDivisionError: ours")  # type: ignore[arg-type]
    working.end()
    assert working.has_ended()
