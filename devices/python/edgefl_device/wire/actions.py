"""What a device's session wants done: its driver carries these out, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgefl.bundle import Bundle
from edgefl.errors import BundleError
from edgefl.protocol import Announcement, Outgoing
from edgefl.tensors import Tensors


@dataclass(frozen=True)
class Subscribe:
    topic: str


@dataclass(frozen=True)
class Unsubscribe:
    topic: str


@dataclass(frozen=True)
class Prepare:
    """A bundle is here and verified: make a runtime and fit the data to its contract."""

    bundle: Bundle


@dataclass(frozen=True)
class Unfit:
    """The bundle cannot be used here, which was said already: there is nothing to do in this run."""

    error: BundleError


@dataclass(frozen=True)
class Job:
    """The work of one ask. `settings` are those of the device's class."""

    announcement: Announcement
    tensors: Tensors
    settings: Mapping[str, float]

    @property
    def key(self) -> tuple[int, str]:
        return (self.announcement.round, self.announcement.nonce)


@dataclass(frozen=True)
class Perform:
    """Carry out this job, instead of any other that is under way."""

    job: Job


@dataclass(frozen=True)
class Cancel:
    """The round is over, somebody else's, or takes too long: stop the work under way."""


@dataclass(frozen=True)
class Done:
    """The run is finished."""


@dataclass(frozen=True)
class Conflict:
    """Another device uses our name."""


Action = Outgoing | Subscribe | Unsubscribe | Prepare | Unfit | Perform | Cancel | Done | Conflict
