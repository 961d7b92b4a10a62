"""The thread that trains: one job after the other. It never touches the connection; what it did is an event."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgefl.errors import EdgeflError
from edgefl_device.wire.actions import Job
from edgefl_device.work.interpreter import Answer, Progress
from edgefl_device.work.stopping import Stop, Stopped

LAST_STEP_S = 30.0  # wait so long for the step under way when the run ends
TELL_S = 0.2  # how often progress is an event


@dataclass(frozen=True)
class Performed:
    job: Job
    answered: Answer


@dataclass(frozen=True)
class Failed:
    job: Job
    reason: str


@dataclass(frozen=True)
class Progressed:
    """How far a job is: `batches` of the program's task are done, `left_s` is an estimate for that task."""

    job: Job
    program: str
    done: int
    batches: int
    loss: float | None
    left_s: float


Perform = Callable[[Job, Stop, Progress], Answer]


class Worker:
    """Carries out jobs; a new one stops the one before."""

    def __init__(self, perform: Perform, tell: Callable[[Performed | Failed | Progressed], None]) -> None:
        """`perform` does the work, on the thread; `tell` is called there."""
        self._perform = perform
        self._tell = tell
        self._jobs: queue.SimpleQueue[tuple[Job, Stop] | None] = queue.SimpleQueue()
        self._stop = Stop()
        # No daemon: one in the middle of a step aborts the process (SIGABRT) when Python is torn down around it.
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def begin(self, job: Job) -> None:
        self._stop.request()
        self._stop = Stop()
        self._jobs.put((job, self._stop))

    def cancel(self) -> None:
        """Stop the job under way, between two operators of a step."""
        self._stop.request()

    def end(self) -> None:
        """Stop, and take no more jobs."""
        self._stop.request()
        self._jobs.put(None)

    def has_ended(self) -> bool:
        """Wait for the step under way, after `end`; False when that takes too long."""
        self._thread.join(LAST_STEP_S)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while self._do(self._jobs.get()):
            pass  # nothing is held while waiting: a job's tensors can be as large as the model

    def _do(self, work: tuple[Job, Stop] | None) -> bool:
        """Carry out one job; False when there are no more."""
        if work is None:
            return False
        job, stop = work
        try:
            self._tell(Performed(job, self._perform(job, stop, _Told(job, self._tell))))
        except Stopped:
            pass
        except EdgeflError as error:
            self._tell(Failed(job, error.message))
        except Exception as error:  # a bug of ours or of the runtime's: the aggregator should not wait for it
            self._tell(Failed(job, f"{type(error).__name__}: {error}"))
        return True


class _Told:
    """Progress of one job as events, a few a second."""

    def __init__(self, job: Job, tell: Callable[[Progressed], None]) -> None:
        self._job = job
        self._tell = tell
        self._begun_s = self._told_s = time.monotonic()

    def __call__(self, program: str, done: int, batches: int, loss: float | None) -> None:
        now_s = time.monotonic()
        if done == 1:
            self._begun_s = now_s  # the first batch of a task takes longer: it is not in the estimate
        elif now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            left_s = (now_s - self._begun_s) / (done - 1) * (batches - done)
            self._tell(Progressed(self._job, program, done, batches, loss, left_s))
