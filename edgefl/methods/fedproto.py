"""FedProto: Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, "FedProto: Federated Prototype Learning across Heterogeneous
Clients", AAAI 2022, arXiv:2105.00243, Algorithm 1.

    round: the server announces the prototypes p[j] of the classes; the device trains its own model of any architecture
           with the loss of eq. 7 (pulled to p[y]) and sends for each of its classes the mean of its features (eq. 3)
    p[j] = the mean over devices, weighted by how many examples of class j each has (eq. 6)

Devices send sums and counts, so that the sums of all replies give the mean over everybody's examples of a class
exactly. Eq. 6 also divides by the number of devices that have the class; that would shrink prototypes, and is left out.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from edgefl.method import Fused, State, Task
from edgefl.methods.fedavg import FedAvg
from edgefl.names import KNOWN, PROTOTYPE_COUNTS, PROTOTYPE_SUMS, PROTOTYPE_WEIGHT, PROTOTYPES


class FedProto(FedAvg, frozen=True):
    """What the features of each class look like on average is shared; models are not.

    For bundles that were exported with --method fedproto; their architectures may differ where the features before
    the last layer are equally many. A class that no device of a round has keeps its prototype; one that none has had
    yet pulls nobody. With `evaluate`, a device evaluates its own model, which it trained in the round before.

    prototype_weight    lambda; None: what the bundle was exported with, 1
    """

    prototype_weight: Annotated[float, Meta(ge=0)] | None = None
    share: tuple[str, ...] = (PROTOTYPES, KNOWN)
    weight: Literal["equal"] = "equal"

    @property
    def sent(self) -> list[str]:
        return []

    def tasks(self, state: State) -> tuple[Task, ...]:
        count = Task(
            program="prototypes", batch_size=256, send=(PROTOTYPE_SUMS, PROTOTYPE_COUNTS), encoding=self.encoding
        )
        return (*super().tasks(state), count)

    def train(self, state: State) -> Task:
        task = super().train(state)
        own = {} if self.prototype_weight is None else {PROTOTYPE_WEIGHT: self.prototype_weight}
        return replace(task, settings=task.settings | own)

    def advance(self, state: State, fused: Fused) -> State:
        """Sums and counts come as means over devices, all weighted the same: their quotient is that of the sums."""
        sums, counts = fused.tensors[PROTOTYPE_SUMS], fused.tensors[PROTOTYPE_COUNTS]  # [classes, d], [classes]
        seen = counts > 0
        before = state.tensors[PROTOTYPES]
        means = np.divide(sums, counts[:, None], out=before.copy(), where=seen[:, None])
        known = np.maximum(state.tensors[KNOWN], seen.astype(state.tensors[KNOWN].dtype))
        return State(state.round + 1, {**state.tensors, PROTOTYPES: means, KNOWN: known}, state.numbers)
