"""Which aggregator a device listens to: of several instances of one run's, the newest that speaks.

Epochs count an aggregator's starts. A broker keeps what was said (a retained message), also by an aggregator that is
dead, and without an access list anybody may say anything, once. So a kept word counts only where somebody has said the
same epoch to us, and an epoch that nobody has renewed for a while no longer keeps older ones out.
"""

from __future__ import annotations

import math
from pathlib import Path

from edgefl.files import write_atomic
from edgefl.protocol import MAX_EPOCH, STATUS_COUNTS_S


class Epochs:
    """The epoch that counts. It is on disk, so that a restart does not listen to an instance that was replaced."""

    def __init__(self, directory: Path, run: str) -> None:
        self._path = directory / f"{run}.epoch"
        self.current = self._read()
        self._since_s = math.inf  # when somebody last said the current epoch; before that, when we began to listen
        self.heard = False  # whether anybody has said the current epoch to this process

    def listen(self, now_s: float) -> None:
        """The connection stands (again): silence counts from now; with infinity, it does not count."""
        self._since_s = now_s

    def takes(self, epoch: int, now_s: float, *, retained: bool) -> bool:
        """Whether a message of this epoch counts; it then is the current one."""
        if retained:
            return self.may_be(epoch, retained=True)
        if epoch < self.current and not now_s - self._since_s > STATUS_COUNTS_S:
            return False
        if epoch != self.current:
            self.current = epoch
            write_atomic(self._path, str(epoch).encode())
        self.heard, self._since_s = True, now_s
        return True

    def may_be(self, epoch: int, *, retained: bool) -> bool:
        """Whether a message of this epoch may be the aggregator's; the epoch that counts stays what it is."""
        return (self.heard and epoch == self.current) if retained else epoch >= self.current

    def silent_s(self, now_s: float) -> float:
        """For how long nobody has said the current epoch."""
        return max(0.0, now_s - self._since_s)

    def _read(self) -> int:
        try:
            epoch = int(self._path.read_text()[:20])
        except (OSError, ValueError):
            return 0
        return epoch if 0 < epoch <= MAX_EPOCH else 0
