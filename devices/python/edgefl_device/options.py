"""How a device takes part: the values of one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgefl.address import Address, Tls
from edgefl.manifest import PORTABLE
from edgefl.memory import installed_mb
from edgefl_device.data.dataset import Splits
from edgefl_device.engines.engine import name_of

PATIENCE_S = 600.0  # an aggregator that says nothing for so long is gone: it may have been fusing, or learning
KEEP_RUNS = 3

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a device is told. `run` None: the one run that is up on the broker."""

    broker: Address
    name: str
    data: Splits
    state: Path
    run: str | None = None
    forever: bool = False  # from run to run, and through what waiting may mend
    patience_s: float = PATIENCE_S
    once: bool = False  # do not wait for a broker that is not there
    tls: Tls | None = None
    threads: int = 1
    engine: str = PORTABLE
    memory_mb: int | None = None  # what it states instead of what it has; so with cores
    cores: int | None = None
    settings: Mapping[str, float] = field(default_factory=dict)  # of programs, its own
    as_is: bool = False  # data far outside the bundle's range are used all the same
    label_counts: bool = True  # say how many examples of each class there are
    keep: int = KEEP_RUNS  # so many finished runs stay in the state folder
    parent: int | None = None  # end when this process is no longer our parent
    progress: Say = lambda line: None  # is told several times a second how far the work under way is

    def capabilities(self) -> dict[str, int | str]:
        """What the device states of itself."""
        return {
            "memory_mb": installed_mb() if self.memory_mb is None else self.memory_mb,
            "cores": (os.cpu_count() or 0) if self.cores is None else self.cores,
            "runtime": name_of(self.engine),
            "train_examples": len(self.data.train),
            "test_examples": len(self.data.test) if self.data.test is not None else 0,
        }
