"""What a device keeps for itself from ask to ask, and whether its runtime still holds it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgefl.tensors import Tensors
from edgefl_device.engines.engine import Engine


@dataclass(frozen=True)
class Private:
    """State tensors of the device's own, by name; those that are not here are the bundle's. Empty at first.

    held        names of state tensors that a runtime held, at `version` of its state, as they are here: with the values
                in `tensors`, or the bundle's
    version     0 is no runtime's: what comes from a disk is held by none
    """

    tensors: Tensors = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    version: int = 0

    def held_by(self, runtime: Engine) -> frozenset[str]:
        """The names of the state tensors that need not be loaded; none once the runtime's state has changed."""
        return self.held if self.version == runtime.version else frozenset()
