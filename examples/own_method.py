"""A method of your own: [method] name = "own_method.py:Patient".

A method is the aggregator's half of an algorithm: what devices do in a round, as data, and what becomes of their
replies (edgefl/method.py). This one is FedAvg with one part in another form.
"""

from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from edgefl.method import Fused, State
from edgefl.methods.fedavg import FedAvg


class Patient(FedAvg, frozen=True):
    """FedAvg that goes only a part of the way to the mean of the devices: x <- x + part (mean - x).

    part    of the way. Fields are keys of [method]; what is not within their bounds is refused before a run
    """

    part: Annotated[float, Meta(gt=0, le=1)] = 0.5

    def advance(self, state: State, fused: Fused) -> State:
        """The state after a round; the arguments stay as they were."""
        after = super().advance(state, fused)
        moved = {name: (x + self.part * (after.tensors[name] - x)).astype(x.dtype) for name, x in state.tensors.items()}
        return replace(after, tensors=moved)
